use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Dsn, Error> {
    Dsn::parse_with(text, |name| {
        let value = match name {
            "HOST" => "sessions.example",
            "KEY" => "s3cret",
            "EMPTY" => "",
            "PLACE" => "s3cret.example:9010/s3cret?plaintext=true&indexer-api-key=s3cret#s3cret",
            "AMP" => "s3&cret",
            "HASH" => "s3#cret",
            "ONLY_HASH" => "#s3cret",
            "PERCENT" => "s3%41cret",
            "PLUS" => "s3+cret",
            "SPACE" => "s3 cret",
            "LINES" => "s3cret\n",
            _ => return None,
        };
        Some(value.to_owned())
    })
}

fn place(text: &str) -> (String, Option<String>, Option<u16>) {
    let dsn = parse(text).unwrap();
    (dsn.scheme().to_owned(), dsn.host().map(str::to_owned), dsn.port())
}

fn message(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn hosts_ports_and_addresses_are_told_apart() {
    let at = |host: &str, port| ("tgm".to_owned(), Some(host.to_owned()), port);
    assert_eq!(place(""), ("tgm".into(), None, None));
    assert_eq!(place("tgm://"), ("tgm".into(), None, None));
    assert_eq!(place("tgm://?plaintext=true"), ("tgm".into(), None, None));
    assert_eq!(place("local://"), ("local".into(), None, None));
    assert_eq!(place("tgm://h"), at("h", None));
    assert_eq!(place("tgm://h/"), at("h", None));
    assert_eq!(place("TGM://h:8080"), at("h", Some(8080)));
    assert_eq!(place("tgm://h:443"), at("h", Some(443)));
    assert_eq!(place("tgm://127.0.0.1:9010"), at("127.0.0.1", Some(9010)));
    assert_eq!(place("tgm://[::1]:9010"), at("[::1]", Some(9010)));
    assert_eq!(place("tgm://[2001:db8::7]"), at("[2001:db8::7]", None));
    assert_eq!(place("tgm://$HOST:9010"), at("sessions.example", Some(9010)));
    assert_eq!(place("tgm://${HOST}"), at("sessions.example", None));
    assert_eq!(place("tgm://$UNSET"), ("tgm".into(), None, None));
}

#[test]
fn parts_that_mean_nothing_are_refused_and_named() {
    assert!(message("sessions.example").contains("has no scheme"));
    assert!(message("tgm:h").contains("has no // after `tgm:`"));
    assert!(message("tgm:/h").contains("has no // after `tgm:`"));
    assert!(message("tgm://h:0").contains("has port 0"));
    assert!(message("tgm://h:70000").contains("invalid port"));
    assert!(message("tgm://:9010").contains("empty host"));
    assert!(message("tgm://[::1").contains("IPv6"));
    assert!(message("tgm://h?a=%ff").contains("not UTF-8"));
    assert!(message("tgm://h?a=1\n&b=2").contains("line break"));
    assert!(message(&format!("tgm://h?a={}", "x".repeat(MAX_BYTES))).contains("longer than"));
}

#[test]
fn a_variable_that_holds_a_huge_value_is_refused() {
    let error = Dsn::parse_with("tgm://$A$A$A", |_| Some("x".repeat(MAX_BYTES / 2)));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("longer than"));
}

#[test]
fn an_unknown_parameter_is_named_beside_the_nearest_known_one() {
    let dsn = parse("tgm://h?plain-text=true").unwrap();
    let mut parameters = dsn.parameters();
    assert!(!parameters.flag("plaintext"));
    assert!(!parameters.flag("insecure"));
    let message = parameters.finish().unwrap_err().to_string();
    assert!(message.contains("`plain-text`") && message.contains("nearest is `plaintext`"));
}

#[test]
fn values_are_read_by_type_and_named_when_wrong() {
    let dsn = parse("x://?on=true&ON=TRUE&t=1m30s&n=7&bad=x&old=1&new=2&same=1").unwrap();
    let mut parameters = dsn.parameters();
    assert!(parameters.flag("on") && !parameters.flag("ON") && !parameters.flag("off"));
    assert_eq!(parameters.duration("t"), Ok(Some(Duration::from_secs(90))));
    assert_eq!(parameters.count(&["n", "m"]), Ok(Some(7)));
    assert_eq!(parameters.count(&["absent"]), Ok(None));
    let message = |error: Error| error.to_string();
    assert!(message(parameters.count(&["bad"]).unwrap_err()).contains("`bad=x`"));
    assert!(message(parameters.duration("bad").unwrap_err()).contains("`x` is not a duration"));
    for error in [parameters.count(&["bad"]).unwrap_err(), parameters.duration("bad").unwrap_err()]
    {
        assert!(std::error::Error::source(&error).is_some(), "{error}");
    }
    assert!(message(parameters.count(&["new", "old"]).unwrap_err()).contains("old name `old`"));
    assert_eq!(parameters.count(&["old", "same"]), Ok(Some(1)));
}

#[test]
fn a_secret_shows_up_neither_in_debug_nor_in_errors() {
    let dsn = parse("tgm://h?indexer-api-key=s3cret&typo=$KEY").unwrap();
    let mut parameters = dsn.parameters();
    let secret = parameters.secret("indexer-api-key").unwrap();
    assert_eq!(secret.expose(), "s3cret");
    assert!(!format!("{dsn:?} {parameters:?} {secret:?}").contains("s3cret"));
    let wrong = parameters.wrong("indexer-api-key", "is no key").to_string();
    assert!(wrong.contains("a value of `indexer-api-key` that is no key"), "{wrong}");
    assert!(!parameters.finish().unwrap_err().to_string().contains("s3cret"));
}

/// What is logged while `act` runs, at the level of warnings.
fn warnings(act: impl FnOnce()) -> String {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .without_time()
        .with_writer(log.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    String::from_utf8(log.0.lock().clone()).unwrap()
}

#[derive(Clone, Default)]
struct Log(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl tracing_subscriber::fmt::MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[test]
fn url_parts_without_a_meaning_are_ignored_with_a_warning() {
    for (url, about) in [
        ("tgm://me@h:80?a=1", "names a user"),
        ("tgm://me:pw@h:80?a=1", "names a user"),
        ("tgm://:@pw@h:80?a=1", "names a user"),
        ("tgm://h:80/pool/x?a=1", "has a path"),
        ("tgm://h:80?a=1#x?a=2&b=3", "has a fragment"),
        ("tgm://h:80?a=1&a=2", "`a` more than once"),
        ("tgm://h:80?a=1&$UNSET", "names $UNSET, which is not set"),
        ("tgm://h:80?a=1&b=${UNSET}", "names ${UNSET}, which is not set"),
    ] {
        let said = warnings(|| {
            let dsn = parse(url).unwrap();
            assert_eq!((dsn.host(), dsn.port()), (Some("h"), Some(80)), "{url}");
            assert_eq!(dsn.parameters().text("a"), Some("1"), "{url}");
            assert!(dsn.parameters().text("b").is_none(), "{url}");
        });
        assert!(said.contains(about) && said.lines().count() == 1, "{url}: {said}");
        assert!(!said.contains("pw") && !said.contains("pool"), "{url}: {said}");
    }
    let quiet = "tgm://h/?a=${EMPTY}&b=$KEY";
    assert_eq!(warnings(|| drop(parse(quiet).unwrap())), "");
}

#[test]
fn an_empty_value_is_the_default_of_every_kind_of_parameter() {
    let dsn = parse("x://?a=&b&c=$EMPTY&a=later").unwrap();
    let mut parameters = dsn.parameters();
    for name in ["a", "b", "c"] {
        assert_eq!(parameters.text(name), None);
        assert!(parameters.secret(name).is_none() && !parameters.flag(name));
        assert_eq!(parameters.duration(name), Ok(None));
        assert_eq!(parameters.count(&[name]), Ok(None));
    }
    assert_eq!(parameters.finish(), Ok(()));
    // An unknown parameter is refused even if its value is empty.
    assert!(parse("x://?typo=").unwrap().parameters().finish().is_err());
}

#[test]
fn a_variable_whose_value_the_query_would_change_is_refused_by_its_name() {
    for name in ["AMP", "HASH", "ONLY_HASH", "PERCENT", "PLUS", "SPACE"] {
        for url in
            ["tgm://h?indexer-api-key=$@", "tgm://h?$@", "tgm://h?a=x${@}&b=1", "tgm://h?$@#"]
        {
            let written =
                if url.contains('{') { format!("${{{name}}}") } else { format!("${name}") };
            let url = url.replace("${@}", &written).replace("$@", &written);
            let said = message(&url);
            assert!(said.contains(&written) && said.contains("`indexer-api-key-file`"), "{said}");
            assert!(!said.contains("cret"), "{url}: {said}");
        }
    }
    let said = message("tgm://h?indexer-api-key=$LINES");
    assert!(said.contains("$LINES, which holds a line break") && !said.contains("cret"), "{said}");
    // A variable outside of the query may hold a query: its value is read as part of the URL.
    let dsn = parse("tgm://$PLACE").unwrap();
    assert_eq!(dsn.host(), Some("s3cret.example"));
    assert_eq!(dsn.parameters().secret("indexer-api-key").unwrap().expose(), "s3cret");
}

#[test]
fn no_message_contains_the_value_of_a_variable() {
    for url in [
        "$KEY",
        "$KEY:h",
        "$KEY://h",
        "tgm://$KEY/$KEY?a=1#$KEY",
        "tgm://$KEY@h",
        "tgm://$KEY:$KEY@h?$KEY=1&$KEY=2",
        "tgm://h:$KEY",
        "tgm://[$KEY",
        "tgm://x$KEY:80?count=$KEY&time=$KEY&$KEY=$KEY&mode=$KEY",
        "tgm://h?count=1${KEY}1&$KEY",
        "tgm://$PLACE",
        "tgm://$PLACE&count=$KEY&$KEY",
        "tgm://h?x=${AMP}",
        "tgm://${SPACE}",
        "tgm://${PERCENT}?time=1",
        "tgm://$LINES",
        "tgm://h$UNSET?count=$UNSET$KEY",
    ] {
        let mut shown = String::new();
        let said = warnings(|| match parse(url) {
            Ok(dsn) => {
                let mut parameters = dsn.parameters();
                shown = format!("{dsn:?} {parameters:?} {:?}", dsn.given_scheme());
                let count = parameters.count(&["count"]).err();
                let time = parameters.duration("time").err();
                let mode = parameters.wrong("mode", "is no mode");
                let rest = parameters.finish().err();
                for error in [count, time, Some(mode), rest].into_iter().flatten() {
                    shown.push_str(&format!(" {error} {error:?}"));
                }
            }
            Err(error) => shown = format!("{error} {error:?}"),
        });
        assert!(!shown.contains("cret") && !said.contains("cret"), "{url}: {shown} {said}");
    }
    let dsn = parse("tgm://me:s3cret@x$HOST:80?$KEY=1&count=1$KEY").unwrap();
    assert_eq!(dsn.given_host().unwrap().to_string(), "x$HOST");
    assert!(format!("{dsn:?}").contains("x$HOST"));
    let error = dsn.parameters().count(&["count"]).unwrap_err().to_string();
    assert!(error.contains("`count=1$KEY`: `1$KEY` is not a whole number"), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,60}") {
        let _ = Dsn::parse(&text);
    }

    #[test]
    fn nothing_like_a_url_makes_the_parser_panic(
        text in "(tgm|local|x)?:?/{0,2}[a-z$@:.\\[\\]{}%é0-9-]{0,12}(/|\\?[a-z=&$%+#é-]{0,20})?"
    ) {
        if let Ok(dsn) = Dsn::parse(&text) {
            let mut parameters = dsn.parameters();
            let _ = (parameters.flag("a"), parameters.duration("b"), parameters.count(&["c"]));
            let _ = parameters.finish();
        }
    }
}
