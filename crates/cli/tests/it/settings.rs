//! Every setting of `serve`: as a flag, as a variable and in the file, which of these takes
//! precedence, and how the setting is shown.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Ran, command, file, finish, folder};
use serde_json::{Value, json};
use tgm_session_server::settings::{self, Setting};

/// `serve --print-config`, with its own state folder.
fn print_config(folder: &tempfile::TempDir) -> Command {
    let mut command = command(["serve", "--print-config", "--format", "json"]);
    command.env("XDG_STATE_HOME", folder.path().join("state"));
    command
}

/// The line of the setting called `name`.
fn printed(ran: &Ran, name: &str) -> Value {
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
    let line = ran.json().into_iter().find(|line| line["name"] == name);
    line.unwrap_or_else(|| panic!("{name} is missing: {ran:?}"))
}

/// A value that is not the default: as text, as TOML, and as `--print-config` shows it.
fn another_value(setting: &Setting) -> (&'static str, &'static str, Value) {
    match setting.value_name() {
        "ADDR" => ("127.0.0.9:99", "'127.0.0.9:99'", json!("127.0.0.9:99")),
        "TOKEN" => ("s3cret", "'s3cret'", json!("***")),
        "BOOL" => ("true", "true", json!(true)),
        "ORIGINS" => ("https://a.example", "['https://a.example']", json!(["https://a.example"])),
        "HOST:PORT" => ("a.example:99", "'a.example:99'", json!("a.example:99")),
        "NAME" => ("nobody", "'nobody'", json!("nobody")),
        "URL" => ("memory:", "'memory:'", json!("memory:")),
        "FILE" => ("some.pem", "'some.pem'", json!("some.pem")),
        "N" if setting.name().ends_with("bytes") => ("1048576", "1048576", json!(1_048_576)),
        "N" if setting.name().ends_with("memory") => ("33554432", "33554432", json!(33_554_432)),
        "N" => ("77", "77", json!(77)),
        "DURATION" if setting.name() == "idle_timeout" => ("7m", "'7m'", json!("7m")),
        "DURATION" => ("7s", "'7s'", json!("7s")),
        other => panic!("a test has to know a value of the kind {other}"),
    }
}

#[test]
fn every_setting_can_be_a_flag_a_variable_or_in_the_file_and_its_source_is_shown() {
    let folder = folder();
    let default = finish(print_config(&folder));
    assert_eq!(default.json().len(), settings::all().len() + 1, "all of them, and the file");
    let (mut flags, mut variables) = (print_config(&folder), print_config(&folder));
    let (mut text, mut lines) = ("[server]\n".to_owned(), Vec::new());
    for setting in settings::all() {
        let (value, toml, _) = another_value(setting);
        flags.arg(format!("--{}={value}", setting.flag()));
        variables.env(setting.variable(), value);
        text.push_str(&format!("{} = {toml}\n", setting.name()));
        lines.push(text.lines().count());
    }
    text.push_str("[services.t1r]\n");
    let policy = file(&folder, "policy.toml", &text);
    let mut by_file = print_config(&folder);
    by_file.env("TGM_SESSION_CONFIG", &policy);
    let (flags, variables, by_file) = (finish(flags), finish(variables), finish(by_file));
    for (setting, line) in settings::all().iter().zip(lines) {
        let (name, (_, _, value)) = (setting.name(), another_value(setting));
        let shown = printed(&default, name);
        assert_eq!((&shown["source"], &shown["where"]), (&json!("default"), &Value::Null));
        assert_ne!(shown["value"], value, "{name}");
        let flag = json!(format!("--{}", setting.flag()));
        let place = json!(format!("{}:{line}:1", policy.display()));
        for (ran, source, place) in [
            (&flags, "flag", flag),
            (&variables, "variable", json!(setting.variable())),
            (&by_file, "file", place),
        ] {
            let expected =
                json!({ "name": name, "value": value, "source": source, "where": place });
            assert_eq!(printed(ran, name), expected);
        }
    }
    let config = printed(&by_file, "config");
    assert_eq!(config["where"], "TGM_SESSION_CONFIG");
    assert_eq!(config["value"], policy.display().to_string());
    for ran in [default, flags, variables, by_file] {
        assert!(!ran.stdout.contains("s3cret"), "{ran:?}");
    }
}

#[test]
fn a_flag_overrides_a_variable_which_overrides_the_file_and_the_default() {
    let folder = folder();
    let text = "[server]\nmax_streams = 4\nmax_connections = 1\nmax_leases = 1\n[services.t1r]\n";
    let policy = file(&folder, "policy.toml", text);
    let mut command = print_config(&folder);
    command.arg("--config").arg(&policy).args(["--max-streams", "3"]);
    command.env("TGM_SESSION_MAX_STREAMS", "2").env("TGM_SESSION_MAX_CONNECTIONS", "2");
    let ran = finish(command);
    let value = |name| printed(&ran, name)["value"].clone();
    assert_eq!(value("max_streams"), 3);
    assert_eq!(value("max_connections"), 2);
    assert_eq!(value("max_leases"), 1);
    assert_eq!(value("max_header_bytes"), 32_768);
}

#[test]
fn a_duration_is_written_alike_in_flags_the_policy_file_and_session_urls() {
    let folder = folder();
    for text in ["90s", "1h30m", "1m30s", "1.5s", "0.5h", "2500ms"] {
        let span = tgm_session::parse_duration(text).unwrap();
        // An hour is the longest drain timeout.
        if span <= Duration::from_secs(3600) {
            let mut by_flag = print_config(&folder);
            by_flag.args(["--drain-timeout", text]);
            let shown = printed(&finish(by_flag), "drain_timeout")["value"].clone();
            assert_eq!(humantime::parse_duration(shown.as_str().unwrap()), Ok(span), "{text}");
        }
        let policy = format!("[services.t1r]\nttl = \"{text}\"\n");
        let policy = file(&folder, "policy.toml", &policy);
        let ran = finish(command(["check", policy.to_str().unwrap(), "--format", "json"]));
        let ttl_ms = &ran.json()[0]["services"][0]["ttl_ms"];
        assert_eq!(ttl_ms.as_u64().map(u128::from), Some(span.as_millis()), "{text}: {ran:?}");
    }
}

#[test]
fn print_config_starts_nothing_and_prints_readable_text() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = command(["serve", "--print-config", "--listen", &taken]);
    command.args(["--tls-cert", "nowhere.pem", "--admin-token", "s3cret"]);
    command.env("XDG_STATE_HOME", folder.path().join("state"));
    let ran = finish(command);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{ran:?}");
    let line = |name: &str| {
        let line = ran.stdout.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("listen"), format!("listen = \"{taken}\" # flag --listen"));
    assert_eq!(line("admin_token"), "admin_token = *** # flag --admin-token");
    assert_eq!(line("tls_key"), "tls_key = none # default");
    assert_eq!(line("idle_timeout"), "idle_timeout = \"10m\" # default");
    assert!(!folder.path().join("state").exists(), "a store was made");
}

#[test]
fn a_variable_that_is_empty_counts_as_not_set() {
    let folder = folder();
    let mut empty = print_config(&folder);
    for setting in settings::all() {
        empty.env(setting.variable(), "");
    }
    for variable in ["CONFIG", "LOG", "LOG_FORMAT"] {
        empty.env(format!("TGM_SESSION_{variable}"), "");
    }
    let (empty, default) = (finish(empty), finish(print_config(&folder)));
    assert_eq!(empty.json(), default.json(), "{empty:?}");

    // An empty variable does not override the file.
    let policy = file(&folder, "policy.toml", "[server]\nmax_streams = 7\n[services.t1r]\n");
    let mut by_file = print_config(&folder);
    by_file.arg("--config").arg(policy).env("TGM_SESSION_MAX_STREAMS", "");
    assert_eq!(printed(&finish(by_file), "max_streams")["source"], "file");
}

#[test]
fn an_invalid_value_or_policy_is_refused_with_its_place() {
    let folder = folder();
    let mut flag = print_config(&folder);
    flag.args(["--idle-timeout", "4m"]);
    let ran = finish(flag);
    assert_eq!(ran.code, Some(2));
    assert_eq!(ran.error(), "--idle-timeout: it has to be between 5m and 1day");

    let mut empty = print_config(&folder);
    empty.args(["--admin-token", ""]).env("TGM_SESSION_THREADS", "two");
    let ran = finish(empty);
    assert_eq!(ran.code, Some(2));
    let told: Vec<_> = ran.stderr.lines().collect();
    let problems = [
        "error: --admin-token: an empty token protects nothing",
        "error: TGM_SESSION_THREADS: \"two\" is not a whole number without a unit",
    ];
    assert_eq!(told, problems);

    // A token that no header can carry is refused, and the error does not contain it.
    for token in ["s3cret\n", " s3cret", "s3cret ", "s3\u{7}cret", "s3cr\u{e9}t"] {
        let mut variable = print_config(&folder);
        variable.env("TGM_SESSION_ADMIN_TOKEN", token);
        let ran = finish(variable);
        assert_eq!(ran.code, Some(2), "{token:?}");
        assert!(ran.error().starts_with("TGM_SESSION_ADMIN_TOKEN: it "), "{ran:?}");
        assert!(
            ran.error().contains("no header can carry") && !ran.stderr.contains("s3"),
            "{ran:?}"
        );
    }
    let with_file = |extra: &[&str]| {
        let mut serve = command(["serve", "--store", "memory:", "--log", "off"]);
        serve.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).args(extra);
        serve.arg("--admin-token-file").arg(file(&folder, "token", "s3cret \n"));
        finish(serve)
    };
    for (extra, problem) in
        [(&[][..], "ends with a space"), (&["--admin-token", "t"], "one of them")]
    {
        let ran = with_file(extra);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.error().starts_with("admin_token_file: "), "{ran:?}");
        assert!(ran.error().contains(problem) && !ran.stderr.contains("s3cret"), "{ran:?}");
    }

    for text in ["[server]\nidle_timeout = '4m'\n", "[services.t1r]\nttl = 1\n"] {
        let policy = file(&folder, "policy.toml", text);
        let mut command = print_config(&folder);
        command.arg("--config").arg(&policy);
        let ran = finish(command);
        assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{ran:?}");
        assert!(ran.error().starts_with(&format!("{}:2:", policy.display())), "{ran:?}");
    }
}

#[test]
fn a_certificate_that_cannot_be_used_is_an_error_of_usage_that_names_the_file() {
    let folder = folder();
    let (cert, key) = (file(&folder, "cert.pem", ""), file(&folder, "key.pem", ""));
    let mut serve = command(["serve", "--store", "memory:", "--log", "off"]);
    serve.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    serve.arg("--tls-cert").arg(&cert).arg("--tls-key").arg(&key);
    let ran = finish(serve);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let said = format!("cannot use {} for TLS: there is no certificate in it", cert.display());
    assert!(ran.error().starts_with(&said), "{ran:?}");
}

#[test]
fn log_lines_are_json_when_that_is_asked_for_and_the_last_error_too() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\nttl = '30s'\n");
    let mut serve = command(["serve", "--log-format", "json", "--store", "sled:x", "--config"]);
    serve.arg(policy).env("TGM_SESSION_LOG", "info");
    let refused = finish(serve);
    assert_eq!((refused.code, &*refused.stdout), (Some(2), ""), "{refused:?}");

    let mut warned = command(["serve", "--print-config", "--store", "memory:", "--config"]);
    warned.arg(file(&folder, "short.toml", "[services.t1r]\nttl = '30s'\n"));
    warned.env("TGM_SESSION_LOG_FORMAT", "json");
    let warned = finish(warned);
    assert_eq!(warned.code, Some(0), "{warned:?}");

    for (ran, level, part) in [(&refused, "ERROR", "sled:x"), (&warned, "WARN", "ttl of service")] {
        let lines: Vec<Value> =
            ran.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        assert_eq!(lines.len(), 1, "{ran:?}");
        let line = &lines[0];
        assert_eq!(line["level"], level);
        assert!(line["message"].as_str().unwrap().contains(part), "{line}");
        assert!(line["target"].as_str().unwrap().starts_with("tgm_session"), "{line}");
        let timestamp = line["timestamp"].as_str().unwrap();
        assert!(timestamp.starts_with("20") && timestamp.ends_with('Z'), "{line}");
    }
}
