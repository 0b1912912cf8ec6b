//! Runs the real binary, and lets no process outlive its test.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The timeout of every wait. A busy machine needs less.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Skips a test because of `what`, if `scripts/test --allow-missing` allows that. Otherwise the
/// test fails.
pub(crate) fn leave_out(what: &str) {
    let allowed = std::env::var_os("TGM_SESSION_ALLOW_MISSING").is_some();
    assert!(allowed, "{what}: see scripts/test --install and --allow-missing");
    eprintln!("left out: {what}");
}

/// A temporary folder, which is removed after the test.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("tgm-session-test-").tempdir().unwrap()
}

/// Writes `text` to `name` in `folder`.
pub(crate) fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The URL of a store in `folder`.
pub(crate) fn store(folder: &tempfile::TempDir) -> String {
    format!("file:{}", folder.path().join("sessions.redb").display())
}

/// A loopback address without a listener. No other test gets this address: each call returns a
/// different IP address, and servers on free ports listen at 127.0.0.1.
pub(crate) fn free_address() -> String {
    static CALLS: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, high | 0x80, low, CALLS.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().to_string()
}

/// The command of the binary, without the `TGM_SESSION_` variables of the environment.
pub(crate) fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tgm-session"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"TGM_SESSION_") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The exit code and the output of a process.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The one line on standard error, which has to be an error.
    pub(crate) fn error(&self) -> &str {
        let line = self.stderr.strip_suffix('\n').unwrap_or(&self.stderr);
        assert!(
            line.starts_with("error: ") && !line.contains('\n'),
            "not one error line: {self:?}"
        );
        assert!(!self.stderr.contains("panicked") && !self.stderr.contains("backtrace"));
        &line["error: ".len()..]
    }

    /// Standard output as JSON, one value per line.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The names of the events on standard output.
    pub(crate) fn events(&self) -> Vec<String> {
        let name = |event: Value| event["event"].as_str().unwrap().to_owned();
        self.json().into_iter().map(name).collect()
    }
}

/// Runs the binary to its end.
pub(crate) fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ran {
    finish(command(args))
}

/// Runs `command` to its end.
pub(crate) fn finish(mut command: Command) -> Ran {
    Process::new(command.spawn().unwrap()).finish()
}

/// A child process, which is killed at the end of its test.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn new(child: Child) -> Self {
        Self { child }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "a process did not end in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the process ends by itself, and takes what it printed.
    pub(crate) fn finish(mut self) -> Ran {
        // Both pipes are read while the process runs, because a full pipe would block the process.
        let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
            std::thread::spawn(move || {
                let mut text = String::new();
                if let Some(mut pipe) = pipe {
                    pipe.read_to_string(&mut text).unwrap();
                }
                text
            })
        };
        let stdout = read(self.child.stdout.take().map(|pipe| Box::new(pipe) as _));
        let stderr = read(self.child.stderr.take().map(|pipe| Box::new(pipe) as _));
        let code = self.wait().code();
        Ran { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    }

    /// Kills the process with SIGKILL, so that the process cannot clean up.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that the process has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that writes events as lines of JSON, and whose events a test can wait for.
#[derive(Debug)]
pub(crate) struct Talker {
    pub(crate) process: Process,
    lines: Receiver<String>,
}

impl Talker {
    /// Starts the binary with `--format json`.
    pub(crate) fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        let mut command = command(args);
        command.args(["--format", "json"]);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = lines(child.stdout.take().unwrap());
        Self { process: Process::new(child), lines }
    }

    /// Waits for the event called `name`, and skips the events before it.
    pub(crate) fn event(&mut self, name: &str) -> Value {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let event: Value = serde_json::from_str(&line).expect(&line);
                    if event["event"] == name {
                        return event;
                    }
                }
                Err(RecvTimeoutError::Timeout) => panic!("no event {name:?} in time"),
                Err(RecvTimeoutError::Disconnected) => {
                    let mut stderr = String::new();
                    if let Some(mut pipe) = self.process.child.stderr.take() {
                        pipe.read_to_string(&mut stderr).unwrap();
                    }
                    panic!("it ended without the event {name:?}: {stderr}");
                }
            }
        }
    }

    /// Sends `signal` and waits for the end.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        self.process.signal(signal);
        self.process.wait().code()
    }
}

fn lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // Reads until the process ends, even if the test has dropped the receiver: a full pipe
        // would block the process.
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    receiver
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) talker: Talker,
    pub(crate) grpc: String,
    pub(crate) admin: String,
    pub(crate) ready: Value,
}

impl Serve {
    /// Starts a server on free ports, with the additional `args`.
    pub(crate) fn start<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::start_on("127.0.0.1:0", args)
    }

    /// Starts a server on `address`.
    pub(crate) fn start_on<S: AsRef<OsStr>>(
        address: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut command = command([
            "serve",
            "--listen",
            address,
            "--admin-listen",
            "127.0.0.1:0",
            "--log",
            "error",
        ]);
        command.args(args).args(["--format", "json"]).stderr(Stdio::inherit());
        let mut talker = Talker::spawn(command);
        let ready = talker.event("ready");
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self { grpc: text("grpc"), admin: text("admin"), ready, talker }
    }

    /// Starts a server with this policy, over a store in this folder.
    pub(crate) fn with_policy(folder: &tempfile::TempDir, policy: &Path) -> Self {
        let store = store(folder);
        Self::start([
            OsStr::new("--config"),
            policy.as_os_str(),
            OsStr::new("--store"),
            store.as_ref(),
        ])
    }

    /// The session URL of the server.
    pub(crate) fn url(&self) -> String {
        format!("tgm://{}?plaintext=true&request-keep-alive-delay=200ms", self.grpc)
    }

    /// Kills the server with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.talker.process.kill();
    }

    /// Stops the server with SIGTERM, and returns its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.talker.end(Signal::TERM)
    }

    /// Returns how many leases of `service` the organization holds, according to
    /// `tgm-session state`.
    pub(crate) fn active(&self, organization: &str, service: &str) -> u64 {
        let url = self.url();
        let args = ["state", &url, "--organization", organization, "--service", service];
        let ran = run(args.into_iter().chain(["--format", "json"]));
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.json()[0]["active"].as_u64().unwrap()
    }
}
