//! `borrow` and `state` against a real server: their output and their exit codes.

use crate::harness::{self, PATIENCE, Serve, Talker, file, folder, free_address, run, store};
use rustix::process::Signal;

const POLICY: &str = r#"
[services.t1r]
max_per_organization = 2
[services.t2w]
max_per_organization = 3
[organizations.none]
limits = { t1r = 0 }
[organizations.closed]
disabled = true
"#;

fn server(folder: &tempfile::TempDir) -> Serve {
    Serve::with_policy(folder, &file(folder, "policy.toml", POLICY))
}

fn borrow<'a>(url: &'a str, organization: &'a str) -> [&'a str; 4] {
    ["borrow", url, "--organization", organization]
}

#[test]
fn a_session_and_its_workers_are_held_for_a_time_and_returned() {
    let folder = folder();
    let server = server(&folder);
    let url = server.url();
    let args = borrow(&url, "acme").into_iter();
    let mut holder = Talker::start(args.chain(["--workers", "2", "--for", "4s"]));
    let holding = holder.event("holding");
    assert_eq!(holding["workers"], 2);
    assert_eq!(holding["trace"].as_str().unwrap().len(), 32, "a random one: {holding}");
    assert!(holder.event("kept_alive")["keep_alives"].as_u64().unwrap() > 0);
    let returned = holder.event("returned");
    assert_eq!((&returned["returned"], &returned["not_returned"]), (&3.into(), &0.into()));
    assert_eq!(holder.process.wait().code(), Some(0));
    assert_eq!((server.active("acme", "t1r"), server.active("acme", "t2w")), (0, 0));
}

#[test]
fn ctrl_c_returns_every_lease_before_the_holder_exits() {
    let folder = folder();
    let server = server(&folder);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let url = server.url();
        let mut holder = Talker::start(borrow(&url, "acme").into_iter().chain(["--workers", "3"]));
        holder.event("holding");
        assert_eq!((server.active("acme", "t1r"), server.active("acme", "t2w")), (1, 3));
        assert_eq!(holder.end(signal), Some(0));
        assert_eq!((server.active("acme", "t1r"), server.active("acme", "t2w")), (0, 0));
    }
}

#[test]
fn a_full_pool_refuses_with_its_scope_and_numbers_and_3() {
    let folder = folder();
    let server = server(&folder);
    let url = server.url();
    let ran = run(borrow(&url, "none").into_iter().chain(["--format", "json"]));
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert_eq!(ran.events(), ["refused"]);
    let refused = &ran.json()[0];
    assert_eq!(
        (&refused["scope"], &refused["active"], &refused["max"]),
        (&"organization".into(), &0.into(), &0.into())
    );
    assert!(ran.error().contains("Concurrent stream limit exceeded (active sessions: 0/0)"));

    // What was borrowed before the refusal is returned.
    let ran = run(borrow(&url, "acme").into_iter().chain(["--workers", "4"]));
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.error().contains("Worker limit exceeded (active workers: 3/3)"), "{ran:?}");
    assert_eq!((server.active("acme", "t1r"), server.active("acme", "t2w")), (0, 0));

    let capped = ["--workers", "2", "--max-workers", "1"];
    let ran = run(borrow(&url, "acme").into_iter().chain(capped));
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.error().contains("(active workers: 1/1)"), "{ran:?}");
}

#[test]
fn a_disabled_organization_is_refused_with_3() {
    let folder = folder();
    let server = server(&folder);
    let ran = run(borrow(&server.url(), "closed"));
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.error().contains("permission denied"), "{ran:?}");
}

#[test]
fn a_call_without_a_known_key_is_refused_with_3() {
    let folder = folder();
    let text = format!(
        "[services.t1r]\n[[indexers]]\nname = 'west'\nkey_sha256 = '{}'\n",
        // The SHA-256 of `test`.
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    );
    let server = Serve::with_policy(&folder, &file(&folder, "policy.toml", &text));
    let url = server.url();
    for command in ["borrow", "state"] {
        let ran = run([command, &url, "--organization", "acme"]);
        assert_eq!(ran.code, Some(3), "{ran:?}");
        assert!(ran.error().contains("unauthenticated"), "{ran:?}");
    }
    let url = format!("{url}&indexer-api-key=test");
    let ran = run(borrow(&url, "acme").into_iter().chain(["--for", "1ms"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn an_unreachable_server_is_reported_with_its_address_and_4() {
    let address = free_address();
    let url = format!("tgm://{address}?plaintext=true&borrow-timeout=300ms");
    for command in ["borrow", "state"] {
        // On a slow machine a try may be in flight at the deadline. Its return is given up with a warning.
        let ran = run([command, &url, "--organization", "acme", "--log", "error"]);
        assert_eq!(ran.code, Some(4), "{ran:?}");
        assert!(ran.error().contains(&address), "{ran:?}");
    }
}

#[test]
fn ids_of_5000_bytes_and_empty_ones_are_refused_by_name_and_nothing_is_held() {
    let folder = folder();
    let server = server(&folder);
    let url = server.url();
    let long = "x".repeat(5_000);
    for (args, field) in [
        (vec!["--organization", &*long], "organization"),
        (vec!["--organization", ""], "organization"),
        (vec!["--organization", "acme", "--service", &long], "service"),
        (vec!["--organization", "acme", "--service", ""], "service"),
        (vec!["--organization", "acme", "--trace", &long], "trace"),
        (vec!["--organization", "acme", "--api-key-id", &long], "api_key"),
    ] {
        let ran = run(["borrow", &url].into_iter().chain(args.clone()));
        assert_eq!(ran.code, Some(2), "{field}: {ran:?}");
        assert!(ran.error().contains(field), "{field}: {ran:?}");
        assert!(ran.error().len() < 500, "an error repeats 5,000 bytes");
    }
    for args in [["--organization", &*long], ["--organization", ""]] {
        let ran = run(["state", &url].into_iter().chain(args));
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.error().contains("organization"), "{ran:?}");
    }
    assert_eq!(server.active("acme", "t1r"), 0);
}

#[test]
fn a_service_the_policy_does_not_know_is_a_usage_error() {
    let folder = folder();
    let server = server(&folder);
    let url = server.url();
    for command in ["borrow", "state"] {
        let ran = run([command, &url, "--organization", "acme", "--service", "t9"]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.error().contains("t9"), "{ran:?}");
    }
}

#[test]
fn a_session_survives_a_restart_of_the_server_and_the_holder_reports_both() {
    let folder = folder();
    let mut server = server(&folder);
    let url = server.url();
    let mut holder = Talker::start(borrow(&url, "acme").into_iter().chain(["--workers", "1"]));
    holder.event("holding");
    server.kill();
    holder.event("unreachable");
    let policy = folder.path().join("policy.toml");
    let store = store(&folder);
    let args = ["--config", policy.to_str().unwrap(), "--store", &store];
    let again = Serve::start_on(&server.grpc, args);
    assert_eq!(again.ready["recovered_leases"], 2);
    holder.event("reachable");
    holder.event("kept_alive");
    assert_eq!(holder.end(Signal::INT), Some(0));
    assert_eq!(again.active("acme", "t1r"), 0);
}

#[test]
fn a_session_that_is_revoked_ends_with_3_and_the_reason() {
    let folder = folder();
    let mut server = server(&folder);
    let url = server.url();
    let mut holder = Talker::start(borrow(&url, "acme"));
    holder.event("holding");
    server.kill();
    // The new policy disables the organization, so the session ends.
    let text = format!("{POLICY}[organizations.acme]\ndisabled = true\n");
    let policy = file(&folder, "closed.toml", &text);
    let store = store(&folder);
    let args = ["--config", policy.to_str().unwrap(), "--store", &store];
    let _again = Serve::start_on(&server.grpc, args);
    let ended = holder.event("ended");
    assert_eq!(ended["kind"], "session");
    assert!(ended["reason"].as_str().unwrap().starts_with("permission denied"), "{ended}");
    assert_eq!(holder.process.wait().code(), Some(3));
}

#[test]
fn a_session_whose_server_stays_unreachable_is_lost_with_4() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\nttl = '3s'\n");
    let mut server = Serve::with_policy(&folder, &policy);
    let url = server.url();
    let mut holder = Talker::start(borrow(&url, "acme"));
    holder.event("holding");
    server.kill();
    let ended = holder.event("ended");
    assert!(ended["reason"].as_str().unwrap().starts_with("lost"), "{ended}");
    holder.process.signal(Signal::INT);
    assert_eq!(holder.process.wait().code(), Some(4));
}

#[test]
fn a_local_pool_needs_no_server() {
    let args = borrow("local://?max_sessions=1", "acme").into_iter();
    let ran = run(args.chain(["--workers", "2", "--for", "1ms", "--format", "json"]));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let events = ran.events();
    let expected = ["granted", "granted", "granted", "holding", "returning", "returned"];
    assert_eq!(events, expected);
    let ran = run(borrow("local://?max_sessions=0", "acme"));
    assert_eq!(ran.code, Some(3), "{ran:?}");
}

#[test]
fn state_shows_a_bar_and_the_traces_for_people_and_numbers_for_programs() {
    let folder = folder();
    let server = server(&folder);
    let url = server.url();
    let args = borrow(&url, "acme").into_iter();
    let mut holder = Talker::start(args.chain(["--trace", "trace\u{1b}-1", "--workers", "2"]));
    holder.event("holding");
    let ran = run(["state", &url, "--organization", "acme"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("█░ 1/2, 1 free"), "{ran:?}");
    assert!(ran.stdout.contains("trace\\u{1b}-1"), "a terminal would obey: {ran:?}");

    let args = ["state", &url, "--organization", "acme", "--service", "t2w", "--format", "json"];
    let state = &run(args).json()[0];
    let number = |name: &str| state[name].as_u64().unwrap();
    assert_eq!((number("active"), number("max"), number("available")), (2, 3, 1));
    assert_eq!(state["traces"]["trace\u{1b}-1"], 2);
    assert_eq!(holder.end(Signal::TERM), Some(0));
}

#[test]
fn a_holder_with_a_closed_output_continues_and_returns_every_lease() {
    let folder = folder();
    let server = server(&folder);
    let url = server.url();
    let mut command = harness::command(borrow(&url, "acme"));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let mut process = harness::Process::new(command.spawn().unwrap());
    let start = std::time::Instant::now();
    while server.active("acme", "t1r") == 0 {
        assert!(start.elapsed() < PATIENCE, "it never borrowed");
    }
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(0));
    assert_eq!(server.active("acme", "t1r"), 0);
}
