//! An etcd that a test starts on free ports, with one member or several.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

/// A running cluster. It ends with this value.
#[derive(Debug)]
pub struct Etcd {
    folder: tempfile::TempDir,
    flags: Vec<String>,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    /// Where clients, the other members, and questions about its health connect.
    ports: [u16; 3],
    process: Option<Child>,
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Whether etcd is installed. Without it the test fails, or is skipped if `scripts/test --allow-missing`
/// allows that.
fn is_installed() -> bool {
    let installed = [("etcd", "--version"), ("etcdctl", "version")].into_iter().all(|(it, ask)| {
        let mut asked = Command::new(it);
        let asked = asked.arg(ask).env("ETCDCTL_API", "3").stdout(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    });
    if !installed {
        let allowed = std::env::var_os("TGM_SESSION_ALLOW_MISSING").is_some();
        assert!(allowed, "etcd is not installed: see scripts/test --install and --allow-missing");
        eprintln!("left out: etcd is not installed");
    }
    installed
}

impl Etcd {
    /// The cluster of one member that the tests of this process share while one of them runs. Each uses a
    /// prefix of its own.
    ///
    /// `None` where the test is skipped.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Etcd>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(etcd) = shared.upgrade() {
            return Some(etcd);
        }
        let etcd = Arc::new(Self::start(1, &[])?);
        *shared = Arc::downgrade(&etcd);
        Some(etcd)
    }

    /// A cluster of its own. `None` where the test is skipped.
    pub fn start(members: usize, flags: &[&str]) -> Option<Self> {
        Self::start_in(&std::env::temp_dir(), members, flags)
    }

    /// As [`Etcd::start`], with its data below a folder.
    pub fn start_in(folder: &Path, members: usize, flags: &[&str]) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        // Another process may take a port before etcd does.
        let mut tries = (0..5).map(|_| Self::on_free_ports(folder, members, flags));
        Some(tries.find_map(|mut etcd| etcd.starts().then_some(etcd)).expect("etcd ends at once"))
    }

    fn on_free_ports(folder: &Path, members: usize, flags: &[&str]) -> Self {
        let listeners: Vec<_> =
            (0..3 * members).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |at: usize| listeners[at].local_addr().unwrap().port();
        let ports = |at| [3 * at, 3 * at + 1, 3 * at + 2].map(port);
        let members = (0..members).map(|at| Member { ports: ports(at), process: None }).collect();
        let folder = tempfile::tempdir_in(folder).unwrap();
        let mut etcd = Self { folder, flags: Vec::new(), members };
        etcd.set_flags(flags);
        drop(listeners);
        for member in 0..etcd.members.len() {
            etcd.resume(member);
        }
        etcd
    }

    /// The ids of its processes.
    pub fn processes(&self) -> Vec<u32> {
        self.members.iter().filter_map(|member| Some(member.process.as_ref()?.id())).collect()
    }

    /// The URL of a store in it.
    pub fn url(&self, prefix: &str) -> String {
        let places: Vec<_> = (0..self.members.len()).map(|member| self.place(member)).collect();
        format!("etcd://{}/{prefix}", places.join(","))
    }

    /// Where a member takes calls.
    pub fn place(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.members[member].ports[0])
    }

    /// Runs etcdctl, which must succeed, and returns what it prints.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.try_ctl(args).unwrap()
    }

    /// Runs etcdctl, and returns what it prints, or its error.
    pub fn try_ctl(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.place(0)]).args(args);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Removes all revisions before the current one, which is returned.
    pub fn compact(&self) -> i64 {
        let status = self.ctl(&["endpoint", "status", "-w", "json"]);
        let revision = status.split("\"revision\":").nth(1).unwrap();
        let revision: String = revision.chars().take_while(char::is_ascii_digit).collect();
        // Another test may have compacted more meanwhile.
        let compacted = self.try_ctl(&["compact", &revision]);
        assert!(compacted.as_ref().map_or_else(|it| it.contains("has been compacted"), |_| true));
        revision.parse().unwrap()
    }

    fn data(&self, member: usize) -> PathBuf {
        self.folder.path().join(format!("m{member}"))
    }

    /// Where the members reach each other.
    fn peers(&self) -> String {
        let peer = |(at, member): (usize, &Member)| format!("m{at}={}", url(member.ports[1]));
        self.members.iter().enumerate().map(peer).collect::<Vec<_>>().join(",")
    }

    /// Uses other flags when a member is started again.
    pub fn set_flags(&mut self, flags: &[&str]) {
        self.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    }

    /// Keeps a backup of the only member.
    pub fn back_up(&self) -> PathBuf {
        let backup = self.folder.path().join("backup.db");
        self.ctl(&["snapshot", "save", backup.to_str().unwrap()]);
        backup
    }

    /// Kills the only member, and starts it again from a backup.
    pub fn restore(&mut self, backup: &Path) {
        let (data, peers) = (self.data(0), self.peers());
        self.kill(0);
        std::fs::remove_dir_all(&data).unwrap();
        let peer = url(self.members[0].ports[1]);
        let (backup, data) = (backup.to_str().unwrap(), data.to_str().unwrap());
        let named = ["--name", "m0", "--data-dir", data, "--initial-cluster", &peers];
        let restore = ["snapshot", "restore", backup, "--initial-advertise-peer-urls", &peer];
        self.ctl(&[&restore[..], &named].concat());
        self.resume(0);
    }

    /// Starts a member, or starts it again.
    pub fn resume(&mut self, member: usize) {
        let is_encrypted = self.flags.iter().any(|flag| flag.starts_with("--cert-file"));
        let client = self.members[member].ports[0];
        let scheme = if is_encrypted { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{client}");
        let [_, peer, health] = self.members[member].ports.map(url);
        let log = self.folder.path().join(format!("m{member}.log"));
        let log = std::fs::OpenOptions::new().append(true).create(true).open(log).unwrap();
        let process = Command::new("etcd")
            .args(["--name", &format!("m{member}"), "--initial-cluster", &self.peers()])
            .args(["--listen-metrics-urls", &health])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--data-dir")
            .arg(self.data(member))
            .args(&self.flags)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[member].process = Some(process);
    }

    /// Waits until every member answers.
    pub fn wait(&mut self) {
        assert!(self.starts(), "a member of etcd has ended");
    }

    /// Waits until every member answers. Returns whether that happened: none has ended.
    fn starts(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        for member in 0..self.members.len() {
            while !self.is_healthy(member) {
                assert!(Instant::now() < deadline, "etcd does not start");
                let process = self.members[member].process.as_mut();
                if process.is_some_and(|process| process.try_wait().unwrap().is_some()) {
                    return false;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        true
    }

    fn is_healthy(&self, member: usize) -> bool {
        let health = ("127.0.0.1", self.members[member].ports[2]);
        let Ok(mut stream) = TcpStream::connect(health) else { return false };
        let mut answer = String::new();
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.contains("\"true\"")
    }

    /// Kills a member, as a loss of power does.
    pub fn kill(&mut self, member: usize) {
        if let Some(mut process) = self.members[member].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops a member that stays connected: it is silent, as one that was cut off.
    pub fn freeze(&self, member: usize) {
        self.signal(member, Signal::STOP);
    }

    /// Lets a member go on after [`Etcd::freeze`].
    pub fn thaw(&self, member: usize) {
        self.signal(member, Signal::CONT);
    }

    fn signal(&self, member: usize, signal: Signal) {
        let process = self.members[member].process.as_ref().expect("the member runs");
        kill_process(Pid::from_child(process), signal).unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in 0..self.members.len() {
            self.kill(member);
        }
    }
}
