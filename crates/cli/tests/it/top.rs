//! `top` on a real terminal, against a real server. The tests press keys and read the screen.

use crate::harness::{self, Process, Serve, Talker, command, file, finish, folder, run, store};
use crate::terminal::Terminal;
use rustix::process::Signal;

const POLICY: &str = r#"
[services.t1r]
max_per_organization = 5
[services.t2w]
max_per_organization = 20
[organizations.acme]
[organizations.other]
[organizations.quiet]
"#;

struct Stage {
    folder: tempfile::TempDir,
    server: Serve,
}

impl Stage {
    fn new() -> Self {
        let folder = folder();
        let server = Serve::with_policy(&folder, &file(&folder, "policy.toml", POLICY));
        Self { folder, server }
    }

    /// Holds a session of `organization` and `workers` under it.
    fn holder(&self, organization: &str, workers: u32) -> Talker {
        let (url, workers) = (self.server.url(), workers.to_string());
        let mut holder = Talker::start([
            "borrow",
            &url,
            "--organization",
            organization,
            "--workers",
            &workers,
            "--trace",
            &format!("trace-of-{organization}"),
        ]);
        holder.event("holding");
        holder
    }

    /// Starts `top` on its own terminal, and waits until it is connected.
    fn top(&self) -> (Terminal, Process) {
        let admin = format!("http://{}", self.server.admin);
        let mut terminal = Terminal::open();
        let top = Process::new(terminal.run(&command(["top", "--admin", &admin])));
        terminal.wait_for("● connected");
        (terminal, top)
    }
}

#[test]
fn a_new_session_is_shown_and_can_be_searched_opened_and_ended() {
    let stage = Stage::new();
    let (mut terminal, mut top) = stage.top();
    terminal.wait_for("1 of 3 organizations");
    let mut holder = stage.holder("acme", 2);
    terminal.wait_for("█░░░░ 1/5");
    terminal.wait_for("sessions 1   workers 2   organizations 1 of 3 ");

    terminal.press("/ACM\r");
    terminal.wait_for("1 of 1 organizations");
    terminal.press("\r");
    terminal.wait_for("trace-of-acme");
    terminal.press("r");
    terminal.wait_for("End this session of acme on t1r?");
    terminal.press("n");
    terminal.wait_until("without the question", |screen| !screen.contents().contains("End this"));
    assert_eq!(stage.server.active("acme", "t1r"), 1);
    terminal.press("r");
    terminal.wait_for("and 2 workers under its trace");
    terminal.press("y");
    terminal.wait_for("3 leases ended");
    terminal.wait_for("0 sessions");
    assert_eq!(holder.process.wait().code(), Some(3));
    assert_eq!(stage.server.active("acme", "t1r"), 0);

    terminal.press("\x1b");
    terminal.wait_for("organizations · fullest first");
    terminal.press("q");
    assert_eq!(top.wait().code(), Some(0));
    terminal.expect_given_back();
}

#[test]
fn the_list_is_sorted_by_a_key() {
    let stage = Stage::new();
    let _holder = stage.holder("other", 3);
    let (mut terminal, _top) = stage.top();
    let is_first = |name: &'static str| {
        move |screen: &vt100::Screen| {
            let contents = screen.contents();
            contents.lines().nth(6).is_some_and(|line| line.starts_with(name))
        }
    };
    terminal.press("s");
    terminal.wait_for("most leases first");
    terminal.wait_until("led by the busiest", is_first("other"));
    terminal.press("ss");
    terminal.wait_for("by name");
    terminal.wait_until("led by the first name", is_first("acme"));
}

#[test]
fn a_resized_window_is_drawn_again() {
    let stage = Stage::new();
    let (mut terminal, _top) = stage.top();
    let is_last = |line: usize| {
        move |screen: &vt100::Screen| {
            let contents = screen.contents();
            contents.lines().nth(line - 1).is_some_and(|line| line.contains("q quit"))
        }
    };
    terminal.wait_until("filled", is_last(30));
    terminal.resize(12, 90);
    terminal.wait_until("filled again", is_last(12));
    terminal.resize(40, 150);
    terminal.wait_until("filled again", is_last(40));
}

#[test]
fn the_terminal_is_restored_on_ctrl_c_and_on_every_signal_that_stops_top() {
    let stage = Stage::new();
    for signal in [None, Some(Signal::INT), Some(Signal::TERM), Some(Signal::HUP)] {
        let (mut terminal, mut top) = stage.top();
        terminal.wait_until("taken over", |screen| screen.alternate_screen());
        match signal {
            None => terminal.press("\x03"),
            Some(signal) => top.signal(signal),
        }
        assert_eq!(top.wait().code(), Some(0), "{signal:?}");
        terminal.expect_given_back();
    }
}

#[test]
fn a_lost_connection_is_shown_and_top_reconnects() {
    let mut stage = Stage::new();
    let (mut terminal, mut top) = stage.top();
    let (grpc, admin) = (stage.server.grpc.clone(), stage.server.admin.clone());
    stage.server.kill();
    terminal.wait_for("○ connection lost");
    terminal.wait_for("nobody listens at");
    assert!(terminal.picture().contains("acme"), "what was known is gone: {}", terminal.picture());
    let policy = stage.folder.path().join("policy.toml");
    let store = store(&stage.folder);
    // `Serve` takes free ports, but `top` needs the same ports again.
    let mut again = command(["serve", "--listen", &grpc, "--admin-listen", &admin]);
    again.arg("--config").arg(policy).args(["--store", &store, "--format", "json"]);
    let mut again = Talker::spawn(again);
    again.event("ready");
    terminal.wait_for("● connected");
    terminal.press("q");
    assert_eq!(top.wait().code(), Some(0));
}

#[test]
fn without_a_terminal_top_prints_one_plain_table() {
    let stage = Stage::new();
    let _holder = stage.holder("acme", 2);
    let admin = format!("http://{}", stage.server.admin);
    let ran = run(["top", "--admin", &admin]);
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""));
    assert!(!ran.stdout.contains('\x1b'), "{:?}", ran.stdout);
    for part in ["sessions 1  workers 2", "█░░░░ 1/5", "organizations 1 of 3 active"] {
        assert!(ran.stdout.contains(part), "{part:?} is missing: {}", ran.stdout);
    }
    let ran = run(["top", "--admin", &admin, "--format", "json"]);
    let [shown] = &ran.json()[..] else { panic!("not one value: {ran:?}") };
    assert_eq!((&shown["overview"]["sessions"], &shown["total"]), (&1.into(), &3.into()));
    let acme = shown["organizations"].as_array().unwrap();
    let acme = acme.iter().find(|row| row["organization"] == "acme").unwrap();
    assert_eq!(acme["services"][0]["active"], 1);
}

#[test]
fn top_prints_json_on_a_terminal_and_a_plain_table_on_a_dumb_one() {
    let stage = Stage::new();
    let admin = format!("http://{}", stage.server.admin);
    let mut terminal = Terminal::open();
    let mut top =
        Process::new(terminal.run(&command(["top", "--admin", &admin, "--format", "json"])));
    terminal.wait_for("{\"overview\":{\"version\":");
    assert_eq!(top.wait().code(), Some(0));
    assert!(!terminal.picture().contains('●'));

    let mut dumb = command(["top", "--admin", &admin]);
    let ran = finish({
        dumb.env("TERM", "dumb");
        dumb
    });
    assert!(ran.stdout.contains("3 organizations"), "{ran:?}");
}

#[test]
fn an_unreachable_server_or_a_missing_token_is_an_error_and_no_empty_screen() {
    let mut terminal = Terminal::open();
    let nowhere = format!("http://{}", harness::free_address());
    let mut top = Process::new(terminal.run(&command(["top", "--admin", &nowhere])));
    terminal.wait_for("error: nobody listens at");
    assert_eq!(top.wait().code(), Some(4));
    terminal.expect_given_back();

    let server = Serve::start(["--store", "memory:", "--admin-token", "s3cret"]);
    let admin = format!("http://{}", server.admin);
    let mut terminal = Terminal::open();
    let mut top = Process::new(terminal.run(&command(["top", "--admin", &admin])));
    terminal.wait_for("TGM_SESSION_ADMIN_TOKEN");
    assert_eq!(top.wait().code(), Some(3));
}
