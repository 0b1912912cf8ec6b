//! `serve` while its policy file changes: which limits apply, which sessions end, and which files
//! are refused.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{PATIENCE, Serve, Talker, command, file, folder, run};
use rustix::process::Signal;

/// A server whose log can be read, and its policy file.
struct Watching {
    server: Talker,
    url: String,
    admin: String,
    policy: PathBuf,
    _folder: tempfile::TempDir,
}

fn sessions(max: u64) -> String {
    format!("[services.t1r]\nmax_per_organization = {max}\n")
}

impl Watching {
    fn start(policy: &str) -> Self {
        let folder = folder();
        let policy = file(&folder, "policy.toml", policy);
        let mut serve = command(["serve", "--store", "memory:", "--listen", "127.0.0.1:0"]);
        serve.args(["--admin-listen", "127.0.0.1:0", "--format", "json", "--log", "info"]);
        serve.arg("--config").arg(&policy);
        let mut server = Talker::spawn(serve);
        let ready = server.event("ready");
        let url = format!("tgm://{}?plaintext=true", ready["grpc"].as_str().unwrap());
        let admin = ready["admin"].as_str().unwrap().to_owned();
        Self { server, url, admin, policy, _folder: folder }
    }

    fn write(&self, policy: &str) {
        std::fs::write(&self.policy, policy).unwrap();
    }

    /// Waits until the server has applied or refused its policy file `times` times.
    fn wait_for(&self, outcome: &str, times: u64) {
        let line = format!("tgm_session_policy_reloads_total{{outcome=\"{outcome}\"}} {times}\n");
        let start = Instant::now();
        while !get(&self.admin, "/metrics").contains(&line) {
            assert!(start.elapsed() < PATIENCE, "never {times} times {outcome}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The exit code of a borrow that holds its session for 1 ms.
    fn borrow(&self, organization: &str) -> Option<i32> {
        run(["borrow", &self.url, "--organization", organization, "--for", "1ms"]).code
    }

    /// Stops the server, and returns its log.
    fn log(self) -> String {
        self.server.process.signal(Signal::TERM);
        let ran = self.server.process.finish();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stderr
    }
}

/// The answer of the admin port to a GET.
fn get(address: &str, path: &str) -> String {
    ask(address, "GET", path, "")
}

/// The answer of the admin port.
fn ask(address: &str, method: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_changed_limit_applies_to_the_next_borrow() {
    let watching = Watching::start(&sessions(0));
    assert_eq!(watching.borrow("acme"), Some(3));
    watching.write(&sessions(1));
    watching.wait_for("applied", 1);
    assert_eq!(watching.borrow("acme"), Some(0));
    let log = watching.log();
    assert!(log.contains("loaded the policy file") && log.contains("from=file"), "{log}");
}

#[test]
fn disabling_an_organization_in_the_file_ends_its_session_at_once() {
    let watching = Watching::start(&sessions(9));
    // The first keep-alive is due in an hour, so only a push can end the session in time.
    let url = format!("{}&request-keep-alive-delay=1h", watching.url);
    let mut held = Talker::start(["borrow", &url, "--organization", "acme"]);
    held.event("holding");
    let mut other = Talker::start(["borrow", &url, "--organization", "other"]);
    other.event("holding");
    watching.write(&(sessions(9) + "[organizations.acme]\ndisabled = true\n"));
    let ended = held.event("ended");
    assert!(ended["reason"].as_str().unwrap().starts_with("permission denied"), "{ended}");
    assert_eq!(held.process.wait().code(), Some(3));
    assert_eq!(watching.borrow("acme"), Some(3));
    assert_eq!(other.end(Signal::INT), Some(0), "the other goes on");
}

#[test]
fn a_broken_file_is_refused_with_line_and_reason_and_the_old_policy_stays() {
    let watching = Watching::start(&sessions(1));
    watching.write("[services.t1r]\nmax_per_organization = 'many'\n");
    watching.wait_for("refused", 1);
    assert_eq!(watching.borrow("acme"), Some(0));
    // A file that is gone is refused as well.
    std::fs::remove_file(&watching.policy).unwrap();
    watching.wait_for("refused", 2);
    assert_eq!(watching.borrow("acme"), Some(0));
    watching.write(&sessions(0));
    watching.wait_for("applied", 1);
    assert_eq!(watching.borrow("acme"), Some(3));
    let log = watching.log();
    let refused: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(refused.len(), 2, "{log}");
    assert!(refused[0].contains("policy.toml:2:24: invalid type: string \"many\""), "{log}");
    assert!(refused[1].contains("cannot read the policy file"), "{log}");
}

/// Replaces the file atomically, as editors and configuration managers do.
fn replace(path: &Path, text: &str) {
    let other = path.with_extension("new");
    std::fs::write(&other, text).unwrap();
    std::fs::rename(other, path).unwrap();
}

#[test]
fn sighup_loads_the_file_at_once_whether_it_changed_or_not() {
    let watching = Watching::start(&sessions(0));
    watching.server.process.signal(Signal::HUP);
    watching.wait_for("applied", 1);
    replace(&watching.policy, &sessions(1));
    watching.server.process.signal(Signal::HUP);
    watching.wait_for("applied", 2);
    assert_eq!(watching.borrow("acme"), Some(0));
    let log = watching.log();
    assert_eq!(log.matches("from=signal").count(), 2, "{log}");
}

#[test]
fn sighup_without_a_policy_file_ends_nothing() {
    let mut server = Serve::start(["--store", "memory:"]);
    server.talker.process.signal(Signal::HUP);
    let url = server.url();
    let ran = run(["borrow", &url, "--organization", "acme", "--for", "1ms"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_policy_file_behind_a_replaced_symbolic_link_is_loaded() {
    use std::os::unix::fs::symlink;
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for (version, max) in [("v1", 0), ("v2", 1)] {
        std::fs::create_dir(at(version)).unwrap();
        std::fs::write(at(version).join("policy.toml"), sessions(max)).unwrap();
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/policy.toml", at("policy.toml")).unwrap();
    let policy = at("policy.toml");
    let args = ["--store", "memory:", "--config", policy.to_str().unwrap()];
    let mut server = Serve::start(args);
    let url = server.url();
    let borrow = || run(["borrow", &url, "--organization", "acme", "--for", "1ms"]).code;
    assert_eq!(borrow(), Some(3));
    symlink("v2", at("..next")).unwrap();
    std::fs::rename(at("..next"), at("..data")).unwrap();
    let start = Instant::now();
    while borrow() != Some(0) {
        assert!(start.elapsed() < PATIENCE, "the new one is never loaded");
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn settings_that_a_reload_cannot_change_are_named_in_the_log() {
    let watching = Watching::start(&(sessions(1) + "[server]\nmax_leases = 5\n"));
    watching.write(&(sessions(1) + "[server]\nmax_leases = 6\n"));
    watching.wait_for("applied", 1);
    let log = watching.log();
    assert!(log.contains("max_leases in [server]"), "{log}");
}

#[test]
fn overrides_survive_a_kill_and_take_precedence_over_the_file() {
    let folder = folder();
    let text = "[services.t1r]\nmax_per_organization = 1\n[organizations.off]\ndisabled = true\n";
    let policy = file(&folder, "policy.toml", text);
    let mut server = Serve::with_policy(&folder, &policy);
    for (path, body) in [
        ("/api/organizations/acme/disabled", "{\"disabled\": true}"),
        ("/api/organizations/off/disabled", "{\"disabled\": false}"),
        ("/api/organizations/none/limits/t1r", "{\"max\": 0}"),
    ] {
        let answer = ask(&server.admin, "PUT", path, body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let borrows = |server: &Serve| {
        let url = server.url();
        let borrow = |organization| {
            run(["borrow", &url, "--organization", organization, "--for", "1ms"]).code
        };
        ["acme", "off", "none", "other"].map(borrow)
    };
    let expected = [Some(3), Some(0), Some(3), Some(0)];
    assert_eq!(borrows(&server), expected);
    server.kill();

    let mut server = Serve::with_policy(&folder, &policy);
    assert_eq!(borrows(&server), expected);
    replace(&policy, &(text.to_owned() + "[organizations.none]\nlimits = { t1r = 5 }\n"));
    server.talker.process.signal(Signal::HUP);
    let start = Instant::now();
    while !get(&server.admin, "/metrics").contains("reloads_total{outcome=\"applied\"} 1\n") {
        assert!(start.elapsed() < PATIENCE, "it is never loaded");
    }
    assert_eq!(borrows(&server), expected, "they win over another file too");
    assert_eq!(server.stop(), Some(0));
}
