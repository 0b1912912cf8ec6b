use super::*;
use crate::config::Loaded;

/// The first error of an invalid file.
fn error_of(text: &str) -> policy::PolicyError {
    match *Loaded::parse(text, "p.toml").unwrap_err().error {
        Error::Policy(error) => error,
        other => panic!("{other}"),
    }
}

/// A valid value of `setting` other than its default, as text and as TOML.
fn another_value(setting: &Setting) -> (&'static str, &'static str) {
    match setting.value_name() {
        "ADDR" => ("127.0.0.9:99", "'127.0.0.9:99'"),
        "TOKEN" => ("s3cret", "'s3cret'"),
        "BOOL" => ("true", "true"),
        "ORIGINS" => {
            ("https://a.example,https://b.example", "['https://a.example', 'https://b.example']")
        }
        "HOST:PORT" => ("a.example:99", "'a.example:99'"),
        "NAME" => ("nobody", "'nobody'"),
        "URL" => ("file:/nowhere", "'file:/nowhere'"),
        "FILE" => ("some.pem", "'some.pem'"),
        "N" => ("9999", "9999"),
        "DURATION" => ("299s999ms", "'299s999ms'"),
        other => panic!("a test has to know a value of the kind {other}"),
    }
}

/// A value within the bounds of `setting`, as text and as TOML.
fn in_range(setting: &Setting) -> (String, String) {
    let both = |text: String, quote: &str| (text.clone(), format!("{quote}{text}{quote}"));
    match setting.bounds {
        Some((_, Bound::Count(most))) => both((most - 1).to_string(), ""),
        Some((_, Bound::Time(longest))) => {
            both(humantime::format_duration(longest - Duration::from_millis(1)).to_string(), "'")
        }
        None => {
            let (text, toml) = another_value(setting);
            (text.to_owned(), toml.to_owned())
        }
    }
}

#[test]
fn every_setting_says_the_same_in_a_flag_and_in_a_file() {
    for setting in all() {
        let (text, toml) = in_range(setting);
        let mut flag = Given::default();
        flag.set(setting, &text, Source::Flag).unwrap();
        let (mut by_flag, mut by_file) = (scratch(), scratch());
        flag.apply(&mut by_flag).unwrap();

        for key in [setting.name().to_owned(), setting.flag()] {
            let file = Loaded::parse(&format!("[server]\n{key} = {toml}\n"), "policy.toml");
            let file = file.unwrap().server;
            file.apply(&mut by_file).unwrap();
            let Some(Source::File(place)) = file.source(setting.name()) else { panic!("{file:?}") };
            assert_eq!(place.line, 2, "{}", setting.name());
        }
        assert_eq!(setting.show(&mut by_flag), setting.show(&mut by_file));
        assert_ne!(setting.show(&mut by_flag), setting.show(&mut scratch()), "{}", setting.name());
        for other in all().iter().filter(|other| other.name() != setting.name()) {
            let untouched = other.show(&mut scratch());
            assert_eq!(other.show(&mut by_flag), untouched, "{} sets it too", setting.name());
        }
    }
}

#[test]
fn every_default_is_within_its_bounds_and_every_bound_holds_wherever_a_value_is_given() {
    assert!(check(&mut scratch()).is_empty());
    for setting in all() {
        let (under, over) = match setting.bounds {
            Some((Bound::Count(least), Bound::Count(most))) => {
                ((least - 1).to_string(), (most + 1).to_string())
            }
            Some((Bound::Time(shortest), Bound::Time(longest))) => {
                let words = |span| format!("'{}'", humantime::format_duration(span));
                let tick = Duration::from_nanos(1);
                let under = shortest.checked_sub(tick).map_or("'-1s'".into(), words);
                (under, words(longest + tick))
            }
            _ => continue,
        };
        for outside in [under, over] {
            let text = format!("[server]\n\n{} = {outside}\n", setting.name());
            let error = error_of(&text);
            assert_eq!(error.place.line, 3, "{error}");
            assert!(error.problem.starts_with(setting.name()), "{error}");
            let mut given = Given::default();
            let flag = outside.trim_matches('\'');
            given.set(setting, flag, Source::Flag).unwrap_err();
            assert_eq!(given, Given::default());
        }
    }
}

#[test]
fn an_idle_connection_is_never_closed_before_five_minutes() {
    let mut config = scratch();
    config.port.idle_timeout = Duration::from_secs(299);
    let [error] = &check(&mut config)[..] else { panic!("not one error") };
    assert!(error.is_usage());
    assert_eq!(error.to_string(), "idle_timeout: it has to be between 5m and 1day");
}

#[test]
fn a_key_that_is_no_setting_is_refused_with_its_line_and_those_that_are() {
    let error = error_of("[server]\nlisten = '[::1]:1'\nlissten = 1\n");
    assert_eq!((error.place.line, error.place.column), (3, 1));
    assert!(error.problem.contains("\"lissten\"") && error.problem.contains("drain_timeout"));
    let twice = "[server]\nmax_streams = 2\nmax-streams = 3\n";
    let error = error_of(twice);
    assert_eq!(error.place.line, 3);
    assert!(error.problem.contains("twice"), "{error}");
}

#[test]
fn a_value_of_another_kind_is_refused_and_a_secret_is_not_repeated() {
    for (name, value) in [
        ("listen", "9010"),
        ("listen", "'localhost'"),
        ("listen", "'localhost:http'"),
        ("listen", "':9010'"),
        ("allow_anonymous", "'true'"),
        ("max_streams", "'8'"),
        ("max_streams", "-8"),
        ("idle_timeout", "600"),
        ("grpc_web_origins", "'https://a.example'"),
        ("grpc_web_origins", "[1]"),
        ("grpc_web_origins", "['*']"),
        ("default_organization", "''"),
        ("default_organization", "7"),
        ("store", "'sled:x'"),
        ("tls_cert", "''"),
        ("admin_token", "''"),
        ("admin_token", "[5417]"),
    ] {
        let text = format!("[server]\n{name} = {value}\n");
        let error = error_of(&text);
        assert_eq!(error.place.line, 2, "{error}");
        assert!(error.problem.starts_with(&format!("{name}: ")), "{error}");
        assert!(!error.to_string().contains("5417"), "{error}");
    }
}

#[test]
fn flags_and_variables_come_before_the_file_and_a_secret_is_never_shown() {
    let file = "[server]\nlisten = '[::1]:1'\nmax_streams = 8\nadmin_token = 's3cret'\n";
    let file = Loaded::parse(file, "p.toml").unwrap().server;
    let mut flags = Given::default();
    flags.set(find("listen").unwrap(), "[::1]:2", Source::Variable).unwrap();
    let given = flags.clone().over(file.clone());
    assert_eq!(given.source("listen"), Some(&Source::Variable));
    assert!(matches!(given.source("max_streams"), Some(Source::File(_))));
    assert_eq!(given.source("threads"), None);
    assert_eq!(given.differing(&file), ["listen"]);
    assert_eq!(flags.differing(&given), ["admin_token", "max_streams"]);

    let mut config = scratch();
    given.apply(&mut config).unwrap();
    assert_eq!(config.listen.port(), 2);
    let token = find("admin_token").unwrap().show(&mut config);
    assert_eq!((token.to_string(), token), ("***".to_owned(), Shown::Text("***".into())));
    assert!(!format!("{given:?} {config:?}").contains("s3cret"));
}

#[test]
fn an_address_may_be_given_by_the_name_of_its_host() {
    for name in ["listen", "admin_listen"] {
        let mut given = Given::default();
        given.set(find(name).unwrap(), "localhost:9", Source::Flag).unwrap();
        let mut config = scratch();
        given.apply(&mut config).unwrap();
        let address = if name == "listen" { config.listen } else { config.admin_listen };
        assert!(address.ip().is_loopback() && address.port() == 9, "{name}: {address}");
    }
}
