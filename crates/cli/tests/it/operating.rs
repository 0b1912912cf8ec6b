//! The operator's commands against a real server with real borrows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;

use crate::harness::{
    Process, Ran, Serve, Talker, command, file, finish, folder, free_address, run, store,
};
use crate::terminal::Terminal;
use serde_json::{Value, json};

const POLICY: &str = r#"
[services.t1r]
max_per_organization = 5
[services.t2w]
[plans.pro]
limits = { t1r = 8 }
budgets = { egress_bytes = { amount = 1000, per = "month" } }
[organizations.acme]
plan = "pro"
[organizations.closed]
disabled = true
"#;

/// A server, and the operator's commands about it.
struct Operated {
    folder: tempfile::TempDir,
    policy: PathBuf,
    server: Serve,
}

impl Operated {
    fn new() -> Self {
        let folder = folder();
        let policy = file(&folder, "policy.toml", POLICY);
        let server = Serve::with_policy(&folder, &policy);
        Self { folder, policy, server }
    }

    fn admin(&self) -> String {
        format!("http://{}", self.server.admin)
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(args.iter().copied().chain(["--admin", &self.admin()]))
    }

    /// Runs a command that has to succeed, and returns its JSON output.
    fn json(&self, args: &[&str]) -> Vec<Value> {
        let admin = self.admin();
        let ran = run(args.iter().copied().chain(["--admin", &admin, "--format", "json"]));
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{args:?}: {ran:?}");
        ran.json()
    }

    /// Runs a command that has to succeed, and returns its text output.
    fn text(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!((ran.code, &*ran.stderr), (Some(0), ""), "{args:?}: {ran:?}");
        ran.stdout
    }

    /// Holds a session of `organization`, borrowed with the additional `args`.
    fn hold(&self, organization: &str, args: &[&str]) -> Talker {
        let url = self.server.url();
        let start = ["borrow", &url, "--organization", organization];
        let mut holder = Talker::start(start.into_iter().chain(args.iter().copied()));
        holder.event("holding");
        holder
    }

    /// Tries to get a session, and returns the exit code.
    fn borrow(&self, organization: &str) -> Option<i32> {
        let url = self.server.url();
        run(["borrow", &url, "--organization", organization, "--for", "0s"]).code
    }
}

fn names(values: &[Value], name: &str) -> Vec<String> {
    values.iter().map(|value| value[name].as_str().unwrap().to_owned()).collect()
}

#[test]
fn sessions_and_workers_are_listed_filtered_and_ordered() {
    let server = Operated::new();
    let _acme = server.hold("acme", &["--workers", "2", "--trace", "one", "--api-key-id", "key-1"]);
    let _other = server.hold("other", &["--trace", "two"]);
    let sessions = server.json(&["sessions"]);
    assert_eq!(names(&sessions, "organization"), ["other", "acme"]);
    assert_eq!((&sessions[1]["workers"], &sessions[1]["api_key"]), (&2.into(), &"key-1".into()));
    assert_eq!(sessions[1]["lease"].as_str().unwrap().len(), 24);
    for (filter, found) in [
        (&["--organization", "acme"][..], 1),
        (&["--organization", "nobody"], 0),
        (&["--kind", "any"], 4),
        (&["--kind", "worker"], 2),
        (&["--service", "t2w", "--kind", "any"], 2),
        (&["--trace", "two"], 1),
        (&["--api-key", "key-1", "--kind", "any"], 3),
        (&["--indexer", "west"], 0),
        (&["--limit", "1"], 1),
    ] {
        let args: Vec<_> = ["sessions"].into_iter().chain(filter.iter().copied()).collect();
        assert_eq!(server.json(&args).len(), found, "{filter:?}");
    }
    let oldest = server.json(&["sessions", "--oldest", "--limit", "1"]);
    assert_eq!(names(&oldest, "organization"), ["acme"]);

    let text = server.text(&["sessions", "--limit", "1"]);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("lease ") && lines[1].contains("other"), "{text}");
    assert_eq!(lines[2], "1 of 2 sessions; --all lists all of them");
    assert_eq!(server.text(&["sessions", "--trace", "three"]), "no sessions\n");
}

#[test]
fn all_lists_what_takes_more_than_one_page() {
    let server = Operated::new();
    let _holder = server.hold("acme", &["--workers", "1100"]);
    let all = server.json(&["sessions", "--kind", "worker", "--all"]);
    let mut leases = names(&all, "lease");
    leases.sort();
    leases.dedup();
    assert_eq!(leases.len(), 1100);
    assert_eq!(server.json(&["sessions", "--kind", "worker"]).len(), 100);
    assert_eq!(server.json(&["sessions", "--kind", "worker", "--limit", "1050"]).len(), 1050);
}

#[test]
fn organizations_show_their_leases_their_limits_and_the_source_of_each_limit() {
    let server = Operated::new();
    let _acme = server.hold("acme", &["--workers", "2"]);
    let organizations = server.json(&["organizations", "--sort", "name"]);
    assert_eq!(names(&organizations, "organization"), ["acme", "closed"]);
    assert_eq!(server.json(&["organizations", "--search", "LOSE"]).len(), 1);
    assert_eq!(server.json(&["organizations", "--limit", "1"]).len(), 1);
    assert_eq!(server.json(&["organizations", "--all"]).len(), 2);
    let busiest = server.json(&["organizations", "--sort", "active", "--limit", "1"]);
    assert_eq!(names(&busiest, "organization"), ["acme"]);

    let [acme] = &server.json(&["organizations", "acme"])[..] else { panic!("not one") };
    let ceiling = json!({ "max": 8, "source": "plan" });
    assert_eq!(acme["services"][0], json!({ "service": "t1r", "active": 1, "ceiling": ceiling }));
    assert_eq!(acme["budgets"][0]["amount"], 1000.0);
    let text = server.text(&["organizations", "acme"]);
    for part in ["acme  plan pro", "1/8", "egress_bytes 0% used", "month"] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
    let list = server.text(&["organizations"]);
    assert!(list.contains("closed (disabled)") && list.contains("2 organizations"), "{list}");

    let nobody = server.run(&["organizations", "nobody"]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.error().contains("nobody"), "{nobody:?}");
}

#[test]
fn a_revoked_session_ends_with_its_workers_and_its_holder_exits_with_3() {
    let server = Operated::new();
    let mut holder = server.hold("acme", &["--workers", "2"]);
    let sessions = server.json(&["sessions"]);
    let lease = sessions[0]["lease"].as_str().unwrap();
    let done = server.json(&["revoke", lease, "--note", "runs for a week"]);
    assert_eq!(done[0]["ended"], 3);
    assert_eq!(holder.process.wait().code(), Some(3));
    let audit = server.json(&["audit"]);
    assert_eq!((&audit[0]["note"], &audit[0]["ended"]), (&"runs for a week".into(), &3.into()));

    let again = server.run(&["revoke", lease]);
    assert_eq!(again.code, Some(1));
    assert!(again.error().contains(lease), "{again:?}");
}

#[test]
fn several_sessions_are_revoked_only_after_a_confirmation() {
    let server = Operated::new();
    let mut holders: Vec<_> = (0..3).map(|_| server.hold("acme", &["--workers", "1"])).collect();
    let _other = server.hold("other", &[]);
    let asked = server.run(&["revoke", "--organization", "acme"]);
    assert_eq!(asked.code, Some(2));
    assert!(asked.error().contains("3 sessions of organization acme"), "{asked:?}");
    assert!(asked.error().contains("--yes"), "{asked:?}");
    assert_eq!(server.server.active("acme", "t1r"), 3);

    let done = server.json(&["revoke", "--organization", "acme", "--service", "t1r", "--yes"]);
    assert_eq!(done, [json!({ "matched": 3, "ended": 6, "gone": 0 })]);
    for holder in &mut holders {
        assert_eq!(holder.process.wait().code(), Some(3));
    }
    assert_eq!(server.server.active("other", "t1r"), 1);
    // A filter that matches no session asks no question and is not an error.
    let done = server.json(&["revoke", "--organization", "acme"]);
    assert_eq!(done[0]["matched"], 0);
}

#[test]
fn on_a_terminal_revoke_asks_before_it_ends_sessions_by_a_filter() {
    let server = Operated::new();
    let _holder = server.hold("acme", &[]);
    let admin = server.admin();
    let revoke = command(["revoke", "--organization", "acme", "--admin", &admin]);
    for (answer, code, active) in [("\r", 1, 1), ("n\r", 1, 1), ("y\r", 0, 0)] {
        let mut terminal = Terminal::open();
        let mut asked = Process::new(terminal.run(&revoke));
        terminal.wait_for("End 1 session of organization acme at once? [y/N]");
        terminal.press(answer);
        assert_eq!(asked.wait().code(), Some(code), "{answer:?}");
        assert_eq!(server.server.active("acme", "t1r"), active, "{answer:?}");
    }
}

#[test]
fn disabling_ends_sessions_and_refuses_borrows_until_enabled_again() {
    let server = Operated::new();
    let mut holder = server.hold("acme", &["--api-key-id", "key-1"]);
    let done = server.json(&["disable", "organization", "acme", "--note", "unpaid"]);
    assert_eq!(done[0]["ended"], 1);
    assert_eq!(holder.process.wait().code(), Some(3));
    assert_eq!(server.borrow("acme"), Some(3));
    let text = server.text(&["organizations", "acme"]);
    assert!(text.contains("disabled by an override"), "{text}");
    let text = server.text(&["enable", "organization", "acme"]);
    assert_eq!(text, "done: enabled organization acme\n");
    assert_eq!(server.borrow("acme"), Some(0));

    // An override enables an organization that the file disables, until the override is cleared.
    assert_eq!(server.borrow("closed"), Some(3));
    server.json(&["enable", "organization", "closed"]);
    assert_eq!(server.borrow("closed"), Some(0));
    server.json(&["enable", "organization", "closed", "--clear"]);
    assert_eq!(server.borrow("closed"), Some(3));
    let nothing = server.run(&["enable", "organization", "closed", "--clear"]);
    assert_eq!(nothing.code, Some(1), "{nothing:?}");

    let mut holder = server.hold("acme", &["--api-key-id", "key-1"]);
    assert_eq!(server.json(&["disable", "api-key", "key-1"])[0]["ended"], 1);
    assert_eq!(holder.process.wait().code(), Some(3));
    assert_eq!(server.borrow("acme"), Some(0));
}

#[test]
fn a_limit_applies_to_the_next_borrow_and_ends_no_session() {
    let server = Operated::new();
    let _holder = server.hold("acme", &[]);
    let done = server.json(&["limit", "organization", "acme", "t1r", "1", "--note", "trial"]);
    assert_eq!(done[0]["ended"], 0);
    assert_eq!(server.borrow("acme"), Some(3));
    let [acme] = &server.json(&["organizations", "acme"])[..] else { panic!("not one") };
    let ceiling = json!({ "max": 1, "source": "override" });
    assert_eq!(acme["services"][0], json!({ "service": "t1r", "active": 1, "ceiling": ceiling }));

    let [policy] = &server.json(&["policy"])[..] else { panic!("not one") };
    let [set] = &policy["overrides"].as_array().unwrap()[..] else { panic!("{policy}") };
    assert_eq!(
        (&set["id"], &set["max"], &set["note"]),
        (&"acme".into(), &1.into(), &"trial".into())
    );
    let text = server.text(&["policy"]);
    assert!(text.contains("organization acme  t1r limited to 1"), "{text}");

    server.json(&["limit", "organization", "acme", "t1r", "--clear"]);
    assert_eq!(server.borrow("acme"), Some(0));
    let unknown = server.run(&["limit", "organization", "acme", "t9", "1"]);
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.error().contains("t9") && unknown.error().contains("t1r, t2w"), "{unknown:?}");
}

#[test]
fn refusals_are_listed_with_reasons_and_changes_are_in_the_audit_list() {
    let server = Operated::new();
    assert_eq!(server.text(&["refusals"]), "nothing was refused\n");
    assert_eq!(server.text(&["audit"]), "no operator has made a change yet\n");
    server.json(&["limit", "organization", "acme", "t1r", "0", "--note", "holidays"]);
    assert_eq!(server.borrow("acme"), Some(3));
    assert_eq!(server.borrow("closed"), Some(3));
    let refusals = server.json(&["refusals"]);
    assert_eq!(names(&refusals, "scope"), ["disabled", "organization"]);
    let [refusal] = &server.json(&["refusals", "--organization", "acme"])[..] else { panic!() };
    assert_eq!((&refusal["active"], &refusal["max"]), (&0.into(), &0.into()));
    let text = server.text(&["refusals", "--organization", "acme"]);
    assert!(text.contains(refusal["reason"].as_str().unwrap()), "{text}");

    server.json(&["limit", "organization", "acme", "t1r", "--clear"]);
    let audit = server.json(&["audit"]);
    assert_eq!(names(&audit, "note"), ["", "holidays"]);
    assert_eq!(server.json(&["audit", "--limit", "1"]).len(), 1);
    assert_eq!(server.json(&["audit", "--all"]).len(), 2);
    let text = server.text(&["audit"]);
    assert!(text.contains("set the limit of organization acme on t1r to 0"), "{text}");
}

#[test]
fn a_reload_says_what_it_loaded_and_a_broken_file_is_refused_with_its_place() {
    let server = Operated::new();
    let text = server.text(&["reload"]);
    assert!(text.starts_with("done: ") && text.contains("policy.toml"), "{text}");
    std::fs::write(&server.policy, "[services.t1r]\nmax_total = 'many'\n").unwrap();
    let ran = server.run(&["reload"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.error().contains("policy.toml:2:13"), "{ran:?}");
    let text = server.text(&["policy"]);
    assert!(text.contains("refused") && text.contains("policy.toml:2:13"), "{text}");
    assert!(text.contains("plan pro: t1r 8, egress_bytes 1 kB per month"), "{text}");
}

#[test]
fn any_id_reaches_the_server_unchanged() {
    let server = Operated::new();
    for id in ["a/../b c?é&x=1#%", "..", "-dash"] {
        let admin = server.admin();
        let flags = ["disable", "--admin", &admin, "--note", "why & how?"];
        let ran = run(flags.into_iter().chain(["organization", "--", id]));
        assert_eq!(ran.code, Some(0), "{id}: {ran:?}");
        let [policy] = &server.json(&["policy"])[..] else { panic!("not one") };
        let set = policy["overrides"].as_array().unwrap();
        assert!(set.iter().any(|set| set["id"] == id && set["note"] == "why & how?"), "{policy}");
    }
}

#[test]
fn the_admin_token_grants_access_and_is_never_shown() {
    let folder = folder();
    let store = store(&folder);
    let server = Serve::start(["--store", &store, "--admin-token", "s3cret-token"]);
    let admin = format!("http://{}", server.admin);
    let with = |token: Option<&str>| {
        let mut command = command(["organizations", "--admin", &admin, "--log", "trace"]);
        if let Some(token) = token {
            command.env("TGM_SESSION_ADMIN_TOKEN", token);
        }
        let ran = finish(command);
        for token in ["s3cret-token", "wr0ng-token"] {
            assert!(!ran.stderr.contains(token) && !ran.stdout.contains(token), "{ran:?}");
        }
        ran
    };
    assert_eq!(with(Some("s3cret-token")).code, Some(0));
    let wrong = with(Some("wr0ng-token"));
    assert_eq!(wrong.code, Some(3));
    assert!(wrong.stderr.contains("refuses this admin token"), "{wrong:?}");
    let none = with(None);
    assert_eq!(none.code, Some(3));
    assert!(none.stderr.contains("TGM_SESSION_ADMIN_TOKEN"), "{none:?}");
    let empty = with(Some(""));
    assert_eq!(empty.code, Some(3));
    assert_eq!(empty.stderr.lines().last(), none.stderr.lines().last(), "it counts as not set");
    let unfit = with(Some("s3cret-token\n"));
    assert_eq!(unfit.code, Some(2));
}

#[test]
fn an_unreachable_server_is_reported_as_unavailable_with_its_address() {
    let nowhere = format!("http://{}", free_address());
    for args in [
        &["top"][..],
        &["sessions"],
        &["organizations"],
        &["revoke", "000000000000000000000000"],
        &["disable", "organization", "acme"],
        &["limit", "organization", "acme", "t1r", "1"],
        &["reload"],
        &["audit"],
    ] {
        let ran = run(args.iter().copied().chain(["--admin", &nowhere]));
        assert_eq!((ran.code, &*ran.stdout), (Some(4), ""), "{args:?}: {ran:?}");
        assert!(ran.error().contains(&nowhere) && ran.error().contains("--admin"), "{ran:?}");
    }
}

#[test]
fn a_call_to_another_port_says_that_it_may_not_be_the_admin_port() {
    let server = Operated::new();
    let grpc = format!("http://{}", server.server.grpc);
    let ran = run(["sessions", "--admin", &grpc]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.error().contains(&grpc) && ran.error().contains("admin port"), "{ran:?}");
    let _used = &server.folder;
}

/// Answers one request with `answer`. Returns the address, and a thread that returns the head of
/// the request.
fn answer_once(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        let head: Vec<_> =
            reader.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        stream.write_all(answer.as_bytes()).unwrap();
        head.join("\n")
    });
    (address, asked)
}

#[test]
fn a_redirect_is_not_followed_so_that_the_token_goes_nowhere_else() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let to = elsewhere.local_addr().unwrap();
    let redirect = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{to}/\r\ncontent-length: 0\r\n\r\n"
    );
    let (address, asked) = answer_once(redirect.leak());
    let admin = format!("http://{address}");
    let ran = run(["audit", "--admin", &admin, "--admin-token", "s3cret"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.error().contains("307"), "{ran:?}");
    let asked = asked.join().unwrap().to_ascii_lowercase();
    assert!(asked.contains("authorization: bearer s3cret"), "{asked}");
    assert!(elsewhere.accept().is_err(), "the redirect was followed");
}

#[test]
fn a_call_without_an_answer_times_out_with_an_unknown_result() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = format!("http://{}", listener.local_addr().unwrap());
    let ran =
        run(["disable", "organization", "acme", "--admin", &admin, "--admin-timeout", "200ms"]);
    assert_eq!(ran.code, Some(4), "{ran:?}");
    assert!(ran.error().contains("no answer in 200ms"), "{ran:?}");
    assert!(ran.error().contains("whether it was done is not known"), "{ran:?}");
}

#[test]
fn invalid_answers_are_failures_and_no_panics() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n<html></html>\r\n",
        "HTTP/1.1 500 Oh No\r\ncontent-length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ] {
        let (address, asked) = answer_once(answer);
        let ran = run(["sessions", "--admin", &format!("http://{address}")]);
        assert_eq!(ran.code, Some(1), "{answer:?}: {ran:?}");
        assert!(ran.error().contains("admin port"), "{answer:?}: {ran:?}");
        asked.join().unwrap();
    }
}

#[test]
fn a_proxy_of_the_environment_is_not_used() {
    let server = Operated::new();
    let admin = server.admin();
    let mut command = command(["audit", "--admin", &admin]);
    for name in ["http_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        command.env(name, format!("http://{}", free_address()));
    }
    assert_eq!(finish(command).code, Some(0));
}

#[test]
fn an_empty_variable_of_an_operator_counts_as_not_set() {
    let server = Operated::new();
    let admin = server.admin();
    for url in [&["--admin", &*admin][..], &[]] {
        let mut command = command(["audit"]);
        command.args(url);
        for name in ["ADMIN_URL", "ADMIN_TOKEN", "ADMIN_TIMEOUT", "FORMAT", "LOG", "LOG_FORMAT"] {
            command.env(format!("TGM_SESSION_{name}"), "");
        }
        let ran = finish(command);
        // Without a URL the default address is called. The result depends on what listens there,
        // but the command line is valid.
        assert!(ran.code == Some(0) || url.is_empty() && ran.code != Some(2), "{ran:?}");
    }
}

#[test]
fn an_invalid_command_is_a_usage_error_and_sends_no_request() {
    for args in [
        &["revoke"][..],
        &["revoke", "12"],
        &["revoke", "000000000000000000000000", "--organization", "acme"],
        &["revoke", "--kind", "any"],
        &["disable", "organization"],
        &["disable", "indexer", "west"],
        &["disable", "organization", ""],
        &["limit", "organization", "acme", "t1r"],
        &["limit", "organization", "acme", "t1r", "-1"],
        &["limit", "organization", "acme", "t1r", "5", "--clear"],
        &["sessions", "--limit", "0"],
        &["sessions", "--limit", "5", "--all"],
        &["organizations", "acme", "--search", "x"],
        &["audit", "--admin", "127.0.0.1:9011"],
        &["audit", "--admin", "http://operator:s3cret@127.0.0.1:9011"],
        &["audit", "--admin-timeout", "0s"],
    ] {
        let ran = run(args);
        assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{args:?}: {ran:?}");
        assert!(!ran.stderr.contains("panicked"), "{args:?}: {ran:?}");
        assert!(!ran.stderr.contains("s3cret"), "{args:?}: {ran:?}");
    }
}
