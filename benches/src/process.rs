//! Servers as processes, each pinned to one core, and their CPU time.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// The core that servers run on.
pub const SERVER_CORE: &str = "0";

/// The core that load comes from.
pub const LOAD_CORE: &str = "1";

/// How long a server may take to accept; one that restores a million leases takes a while.
const START: Duration = Duration::from_secs(60);

/// The time between two checks of whether a server has stopped.
const LOOK: Duration = Duration::from_millis(5);

/// Ticks per second of `/proc/PID/stat`, part of the interface of the Linux kernel.
const USER_HZ: f64 = 100.0;

/// Prints the address of this server on standard output, for the parent process.
///
/// # Errors
///
/// Standard output is closed.
pub fn announce(address: SocketAddr) -> anyhow::Result<()> {
    let line = serde_json::json!({ "grpc": address.to_string() });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output is closed")
}

/// `program` as a command that runs on `cores` only.
pub fn pinned(cores: &str, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    // taskset becomes the program, so the process id stays the one that was started.
    command.arg("-c").arg(cores).arg(program);
    command
}

/// A server that runs until this value is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    address: SocketAddr,
    /// Where the admin port is, if it has one.
    pub admin: Option<SocketAddr>,
}

impl Server {
    /// Starts `command` and waits for the JSON line with its addresses. The log of the process is
    /// appended to `log`. Without `log` it goes into a pipe that is not read.
    ///
    /// # Errors
    ///
    /// The process cannot be started, ends, or reports no address within a minute; the error shows the
    /// end of its log.
    pub fn start(mut command: Command, log: Option<&Path>) -> anyhow::Result<Self> {
        let errors = match log {
            None => Stdio::piped(),
            Some(log) => {
                let file = File::options().create(true).append(true).open(log);
                file.with_context(|| format!("cannot write {}", log.display()))?.into()
            }
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdout = child.stdout.take().context("standard output was not piped")?;
        match addresses_in(stdout) {
            Some((address, admin)) => Ok(Self { child, address, admin }),
            None => {
                // It does not serve; its log says why.
                let _ = child.kill();
                let _ = child.wait();
                let said = log.map(fs::read_to_string).transpose()?.unwrap_or_default();
                bail!("{command:?} does not serve. It said:\n{}", last_lines(&said, 20))
            }
        }
    }

    /// Its gRPC address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time it has used so far, user and system, all threads.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.id())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it by SIGKILL, unless it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The exit status of the process, if it has ended.
    ///
    /// # Errors
    ///
    /// The system does not report it.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Stops the process with SIGTERM, and waits for its end for at most `limit`. Returns `None` if
    /// it still runs.
    ///
    /// # Errors
    ///
    /// It cannot be signalled.
    pub fn stop(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let process = Pid::from_child(&self.child);
        kill_process(process, Signal::TERM).context("cannot send SIGTERM")?;
        let asked = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) => return Ok(Some(status)),
                None if asked.elapsed() > limit => return Ok(None),
                None => std::thread::sleep(LOOK),
            }
        }
    }
}

/// The time of CLOCK_MONOTONIC in microseconds, which all processes share.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec * 1_000_000 + time.tv_nsec / 1_000).unwrap_or_default()
}

/// CPU time that this thread has used so far, user and system.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}

/// CPU time that a process has used so far, user and system, all threads.
///
/// # Errors
///
/// The process is gone.
pub fn cpu_of(process: u32) -> anyhow::Result<Duration> {
    cpu_at(process, 11)
}

/// CPU time that all children of a process have used that have ended, user and system.
///
/// # Errors
///
/// The process is gone.
pub fn children_cpu_of(process: u32) -> anyhow::Result<Duration> {
    cpu_at(process, 13)
}

fn cpu_at(process: u32, place: usize) -> anyhow::Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    cpu_time(&stat, place).with_context(|| format!("{path} has an unknown form"))
}

/// The bytes of memory that a process has, as they are resident.
///
/// # Errors
///
/// The process is gone.
pub fn memory_of(process: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes =
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kilobytes.with_context(|| format!("{path} has an unknown form"))? * 1024)
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process is killed, because neither the process nor its store is needed any more.
        self.kill();
    }
}

/// Reads lines until one has the `grpc` address, and the `admin` address if there is one. Then
/// continues to read in the background, so that the server never blocks on a full pipe.
fn addresses_in(
    stdout: impl std::io::Read + Send + 'static,
) -> Option<(SocketAddr, Option<SocketAddr>)> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let ready = serde_json::from_str::<Value>(&line).ok();
            let address = |name| ready.as_ref()?.get(name)?.as_str()?.parse().ok();
            if let Some(grpc) = address("grpc") {
                // The receiver is gone once it has its addresses.
                let _ = sender.send((grpc, address("admin")));
            }
        }
    });
    receiver.recv_timeout(START).ok()
}

/// The CPU time in a line of `/proc/PID/stat`: the sum of two fields, the first of which stands so many
/// places behind the name.
fn cpu_time(stat: &str, place: usize) -> Option<Duration> {
    // The program's name is in parentheses and may contain any character, even a parenthesis. The
    // fields after it contain none.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(place);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(Duration::from_secs_f64((user + system) / USER_HZ))
}

/// The last `count` lines of `text`.
fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_spaces_and_parentheses() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 150 25 0 0 20 0 3 0 1000";
        assert_eq!(cpu_time(stat, 11), Some(Duration::from_millis(1750)));
        assert_eq!(cpu_time("42 (a", 11), None);
    }

    #[test]
    fn the_addresses_are_found_behind_other_lines() {
        let output: &[u8] =
            b"starting\n{\"grpc\":\"127.0.0.1:9010\",\"admin\":\"127.0.0.1:9011\"}\n";
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(addresses_in(output), Some((at(9010), Some(at(9011)))));
        let output = &b"{\"grpc\":\"127.0.0.1:9010\"}\n"[..];
        assert_eq!(addresses_in(output), Some((at(9010), None)));
        assert_eq!(addresses_in(&b"cannot bind\n"[..]), None);
    }

    #[test]
    fn a_program_that_does_not_serve_is_reported_with_what_it_said() {
        let log = tempfile::NamedTempFile::new().expect("a temporary file");
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such store >&2"]);
        let error = Server::start(command, Some(log.path())).expect_err("it never serves");
        assert!(error.to_string().contains("no such store"), "{error}");
    }
}
