//! The server under attack, as a process of its own.

use benches::process::last_lines;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long a server may take to accept; one that restores a million leases takes a while.
const START: Duration = Duration::from_secs(60);

/// How often a server that stops is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// How a server is started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) program: PathBuf,
    pub(crate) policy: PathBuf,
    /// The URL of its store.
    pub(crate) store: String,
    /// Flags beyond the usual ones.
    pub(crate) flags: Vec<String>,
    /// Whether its log goes into a pipe that nobody reads.
    pub(crate) unread_log: bool,
    /// Where its log goes otherwise.
    pub(crate) log: PathBuf,
}

/// A server that runs until this value is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    setup: Setup,
    child: Child,
    grpc: SocketAddr,
    admin: SocketAddr,
    /// Held open and never read.
    _log: Option<ChildStderr>,
}

impl Server {
    /// Starts a server on free ports of loopback.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not serve within a minute.
    pub(crate) fn start(setup: Setup) -> anyhow::Result<Self> {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_on(setup, free, free)
    }

    fn start_on(setup: Setup, grpc: SocketAddr, admin: SocketAddr) -> anyhow::Result<Self> {
        let mut command = Command::new(&setup.program);
        command.args(["serve", "--format", "json", "--config"]).arg(&setup.policy);
        command.args(["--store", &setup.store, "--listen", &grpc.to_string()]);
        command.args(["--admin-listen", &admin.to_string()]).args(&setup.flags);
        let log = match setup.unread_log {
            true => Stdio::piped(),
            false => File::options().create(true).append(true).open(&setup.log)?.into(),
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", setup.program.display()))?;
        let log = child.stderr.take();
        let stdout = child.stdout.take().context("standard output was not piped")?;
        let Some((grpc, admin)) = addresses_in(stdout) else {
            // Whatever it is doing, it does not serve; its log says why.
            let _ = child.kill();
            let _ = child.wait();
            let said = fs::read_to_string(&setup.log).unwrap_or_default();
            bail!("the server does not serve. The end of its log:\n{}", last_lines(&said, 10));
        };
        // Should the machine run out of memory all the same, then this process goes first. Only a
        // precaution: where it is not permitted, the attacks are bounded as they were.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), "1000");
        Ok(Self { setup, child, grpc, admin, _log: log })
    }

    /// Kills it by SIGKILL and starts it again, on the same ports and store.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub(crate) fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.kill();
        *self = Self::start_on(self.setup.clone(), self.grpc, self.admin)?;
        Ok(())
    }

    /// Where gRPC is served.
    pub(crate) const fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where the admin port is.
    pub(crate) const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it runs still; how it ended otherwise.
    ///
    /// # Errors
    ///
    /// The system does not say.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Asks it to stop by SIGTERM and waits for its end, at most `limit`; none when it goes on.
    ///
    /// # Errors
    ///
    /// It cannot be signalled.
    pub(crate) fn stop(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
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

    fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Resident memory of a process and its peak since the last [`reset_peak`], in bytes.
///
/// # Errors
///
/// The process is gone.
pub(crate) fn memory(process: u32) -> anyhow::Result<(u64, u64)> {
    let path = format!("/proc/{process}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name| kilobytes(&status, name).with_context(|| format!("{path} has no {name}"));
    Ok((field("VmRSS:")? << 10, field("VmHWM:")? << 10))
}

/// Lets the peak of a process begin anew.
///
/// # Errors
///
/// The process is gone, or the system does not permit it.
pub(crate) fn reset_peak(process: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{process}/clear_refs");
    fs::write(&path, "5").with_context(|| format!("cannot write {path}"))
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Reads lines until one tells both addresses, then goes on emptying the pipe in the background.
fn addresses_in(stdout: impl std::io::Read + Send + 'static) -> Option<(SocketAddr, SocketAddr)> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let ready = serde_json::from_str::<Value>(&line).ok();
            let address = |name| ready.as_ref()?.get(name)?.as_str()?.parse().ok();
            if let (Some(grpc), Some(admin)) = (address("grpc"), address("admin")) {
                // The receiver is gone once it has them.
                let _ = sender.send((grpc, admin));
            }
        }
    });
    receiver.recv_timeout(START).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_kilobytes() {
        let status = "VmPeak:\t  900 kB\nVmHWM:\t  800 kB\nVmRSS:\t  700 kB\n";
        assert_eq!(kilobytes(status, "VmRSS:"), Some(700));
        assert_eq!(kilobytes(status, "VmSwap:"), None);
        let (now, peak) = memory(std::process::id()).expect("this process is there");
        assert!(now > 0 && peak >= now);
    }

    #[test]
    fn both_addresses_are_found_behind_other_lines() {
        let output: &[u8] =
            b"{\"grpc\":\"127.0.0.1:1\"}\n{\"grpc\":\"127.0.0.1:1\",\"admin\":\"127.0.0.1:2\"}\n";
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        assert_eq!(addresses_in(output), Some((at(1), at(2))));
    }
}
