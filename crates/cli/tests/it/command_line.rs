//! Help, checks and wrong command lines. Each error is one clear line with the right exit code.

use crate::harness::{Talker, command, file, finish, folder, free_address, run};

const VALID: &str = r#"
[services.t1r]
max_per_organization = 10
max_per_api_key = 5
[services.t2w]
ttl = "20s"
[plans.pro]
limits = { t1r = 30 }
[organizations.acme]
plan = "pro"
[organizations.closed]
disabled = true
[[indexers]]
name = "west"
key_sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
"#;

#[test]
fn every_setting_of_serve_names_its_default_and_its_variable() {
    let help = run(["serve", "--help"]).stdout;
    let flags = help.split("\n      --").skip(1);
    let flags = flags.filter(|flag| !flag.starts_with("help") && !flag.starts_with("print-config"));
    let mut count = 0;
    for flag in flags {
        count += 1;
        let name = flag.split(|char: char| !char.is_ascii_lowercase() && char != '-').next();
        let variable = name.unwrap().to_uppercase().replace('-', "_");
        // The help wraps long lines.
        let flag = flag.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flag.contains("[default: "), "a hidden default: {flag}");
        assert!(flag.contains(&format!("[env: TGM_SESSION_{variable}]")), "no variable: {flag}");
    }
    // --config is not a setting of the server. --format, --log and --log-format belong to every
    // command.
    assert_eq!(count, tgm_session_server::settings::all().len() + 4, "{help}");
}

#[test]
fn a_wrong_flag_or_a_missing_one_is_a_usage_error() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["serve", "--listen", "localhost"],
        &["serve", "--max-leases", "-1"],
        &["serve", "--tls"],
        &["borrow", "local://"],
        &["borrow", "local://", "--organization", "acme", "--for", "5"],
        &["borrow", "local://", "--organization", "acme", "--workers", "10001"],
        &["state"],
        &["check"],
        &["demo", "--format", "yaml"],
    ] {
        let ran = run(args);
        assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(!ran.stderr.contains("panicked"), "{args:?}: {ran:?}");
    }
    let ran = run(["serve", "--listen", "localhost"]);
    assert!(ran.stderr.contains("127.0.0.1:9010"), "it does not say what is right: {ran:?}");
}

#[test]
fn a_variable_can_replace_a_flag_and_a_flag_overrides_it() {
    let mut wrong = command(["serve"]);
    let ran = finish({
        wrong.env("TGM_SESSION_STORE", "redis://h");
        wrong
    });
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("redis://h"), "{ran:?}");

    let mut beaten = command(["serve", "--store", "sled://h"]);
    beaten.env("TGM_SESSION_STORE", "redis://h");
    let ran = finish(beaten);
    assert!(ran.error().contains("sled://h"), "{ran:?}");
}

#[test]
fn a_log_filter_that_cannot_be_read_is_a_usage_error() {
    let ran = run(["check", "nowhere.toml", "--log", "tgm_session=loud"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("tgm_session=loud"), "{ran:?}");
}

#[test]
fn a_valid_policy_is_summarized_with_its_warnings() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", VALID);
    let ran = run(["check".as_ref(), policy.as_os_str()]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""));
    for part in ["valid", "t1r", "t2w", "2 organizations (1 disabled)", "1 plan,", "1 indexer"] {
        assert!(ran.stdout.contains(part), "{part:?} is missing: {}", ran.stdout);
    }
    assert!(ran.stdout.contains("policy.toml:6:"), "the warning has no line: {}", ran.stdout);

    let json = run(["check".as_ref(), policy.as_os_str(), "--format".as_ref(), "json".as_ref()]);
    let [summary] = &json.json()[..] else { panic!("not one value: {json:?}") };
    assert_eq!(summary["ok"], true);
    assert_eq!(summary["organizations"], 2);
    assert_eq!(summary["warnings"][0]["line"], 6);
    let service = |name: &str| {
        let services = summary["services"].as_array().unwrap();
        services.iter().find(|service| service["name"] == name).unwrap().clone()
    };
    assert_eq!(service("t1r")["max_per_organization"], 10);
    assert_eq!(service("t1r")["max_total"], serde_json::Value::Null);
    assert_eq!(service("t2w")["ttl_ms"], 20_000);
}

#[test]
fn a_check_says_what_the_leases_need_and_warns_when_this_machine_has_less() {
    let folder = folder();
    let summary = |leases: u64| {
        let text =
            format!("[server]\nmax_leases = {leases}\nmax_id_bytes = 1048576\n[services.t1r]\n");
        let policy = file(&folder, "policy.toml", &text);
        let args = ["check".as_ref(), policy.as_os_str(), "--format".as_ref(), "json".as_ref()];
        let ran = run(args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json().remove(0)
    };
    let small = summary(1_000);
    assert_eq!(small["max_leases"], 1_000);
    assert_eq!(
        small["worst_memory_bytes"],
        tgm_session_server::settings::worst_memory(1_000, 1_048_576)
    );
    assert_eq!(small["warnings"].as_array().unwrap().len(), 0, "{small}");
    // No machine has 8 TB.
    let large = summary(u32::MAX.into());
    assert!(
        large["memory_bytes"].as_u64().unwrap() < large["worst_memory_bytes"].as_u64().unwrap()
    );
    let [warning] = &large["warnings"].as_array().unwrap()[..] else { panic!("{large}") };
    assert_eq!(warning["line"], 2);
    assert!(warning["problem"].as_str().unwrap().contains("at worst"), "{warning}");
    let ran = run(["check".as_ref(), folder.path().join("policy.toml").as_os_str()]);
    assert!(ran.stdout.contains("leases (max_leases) need"), "{ran:?}");
}

#[test]
fn an_invalid_policy_is_refused_with_its_file_line_and_reason() {
    let folder = folder();
    for (name, text, line, reason) in [
        ("unknown.toml", "[services.t1r]\nmax_per_organisation = 3\n", 2, "max_per_organisation"),
        ("syntax.toml", "[services.t1r]\n\nttl = \n", 3, ""),
        ("plan.toml", "[services.t1r]\n[organizations.a]\nplan = 'pro'\n", 3, "pro"),
        ("service.toml", "[services.t1r]\n[plans.p]\nlimits = { t9 = 1 }\n", 3, "t9"),
        ("negative.toml", "[services.t1r]\nmax_total = -1\n", 2, ""),
        ("ttl.toml", "[services.t1r]\nttl = \"0s\"\n", 2, "ttl"),
    ] {
        let path = file(&folder, name, text);
        let ran = run(["check".as_ref(), path.as_os_str()]);
        assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{name}: {ran:?}");
        let place = format!("{}:{line}:", path.display());
        assert!(ran.error().contains(&place), "{name} names no {place}: {ran:?}");
        assert!(ran.error().contains(reason), "{name}: {ran:?}");

        let json = run(["check".as_ref(), path.as_os_str(), "--format".as_ref(), "json".as_ref()]);
        assert_eq!((json.code, &json.json()[0]["ok"]), (Some(2), &false.into()));
        assert_eq!(json.json()[0]["line"], line, "{name}");

        // A server refuses the same file with the same error.
        let serve = run(["serve".as_ref(), "--config".as_ref(), path.as_os_str()]);
        assert_eq!((serve.code, serve.error()), (Some(2), ran.error()));
    }
}

#[test]
fn a_missing_policy_file_or_an_invalid_store_url_is_a_usage_error() {
    let folder = folder();
    let missing = folder.path().join("missing.toml");
    let ran = run(["check".as_ref(), missing.as_os_str()]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("missing.toml"), "{ran:?}");

    let policy = file(&folder, "store.toml", "[server]\nstore = 'redis://h'\n[services.t1r]\n");
    let ran = run(["check".as_ref(), policy.as_os_str()]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("redis://h"), "{ran:?}");
}

#[test]
fn an_invalid_url_is_a_usage_error_that_names_the_fault() {
    for (url, fault) in [
        ("sessions.example", "tgm://HOST"),
        ("sessions.example:9010", "sessions.example:"),
        ("redis://h", "local, tgm"),
        ("tgm://h?plaintxt=true", "plaintext"),
        ("tgm://h?request-keep-alive-delay=5", "request-keep-alive-delay"),
        ("tgm://h:99999", "port"),
        ("tgm://h?default-max-request-per-user=invalid", "default-max-request-per-user"),
        ("local://?max_sessions=-1", "max_sessions"),
    ] {
        let ran = run(["borrow", url, "--organization", "acme"]);
        assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{url}: {ran:?}");
        assert!(ran.error().contains(fault), "{url}: {ran:?}");
    }
    let ran = run(["state", "local://", "--organization", "acme"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("tgm://") && ran.error().contains("one process"), "{ran:?}");
    let ran = run(["state", "http://127.0.0.1:9011", "--organization", "acme"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("tgm://") && !ran.error().contains("process"), "{ran:?}");
}

#[test]
fn a_revocation_without_a_filter_says_what_is_missing() {
    for args in [&["revoke"][..], &["revoke", "--kind", "worker"], &["revoke", "--yes"]] {
        let ran = run(args);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        for way in ["number of a lease", "--organization", "--indexer"] {
            assert!(ran.error().contains(way), "{ran:?}");
        }
    }
}

#[test]
fn a_server_listens_at_the_address_of_a_host_name() {
    let listen = ["--listen", "localhost:0", "--admin-listen", "localhost:0"];
    let mut server = Talker::start(["serve", "--store", "memory:"].into_iter().chain(listen));
    let ready = server.event("ready");
    for port in ["grpc", "admin"] {
        let address: std::net::SocketAddr = ready[port].as_str().unwrap().parse().unwrap();
        assert!(address.ip().is_loopback() && address.port() > 0, "{ready}");
    }
    assert_eq!(server.end(rustix::process::Signal::TERM), Some(0));
}

#[test]
fn a_key_in_a_url_never_shows_up_in_an_error() {
    let url =
        format!("tgm://{}?plaintext=true&borrow-timeout=200ms&indexer-api-key=", free_address());
    for url in [format!("{url}s3cret"), format!("{url}s3cret&typo=1"), "tgm://s3cret@h".into()] {
        for command in ["borrow", "state"] {
            let ran = run([command, &url, "--organization", "acme", "--log", "trace"]);
            assert!(matches!(ran.code, Some(2 | 4)), "{ran:?}");
            assert!(!ran.stderr.contains("s3cret"), "{ran:?}");
            assert!(!ran.stdout.contains("s3cret"), "{ran:?}");
        }
    }
}

#[test]
fn a_closed_pipe_causes_no_panic() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", VALID);
    for args in [vec!["--help"], vec!["check", policy.to_str().unwrap()], vec!["demo"]] {
        let mut command = command(&args);
        // A pipe whose reading end is closed before anything is written.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
        let ran = finish(command);
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{args:?}: {ran:?}");
    }
}
