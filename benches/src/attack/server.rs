//! How the server under attack is started, and the memory that it takes.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use benches::process::Server;

/// How a server is started.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) program: PathBuf,
    pub(crate) policy: PathBuf,
    /// The URL of its store.
    pub(crate) store: String,
    /// Flags beyond the usual ones.
    pub(crate) flags: &'static [&'static str],
    /// Whether its log goes into a pipe that is not read.
    pub(crate) unread_log: bool,
    /// Where its log goes otherwise.
    pub(crate) log: PathBuf,
}

impl Setup {
    /// Starts a server at these addresses of gRPC and of the admin port.
    ///
    /// # Errors
    ///
    /// It cannot be started, or does not serve within a minute.
    pub(crate) fn start(&self, grpc: SocketAddr, admin: SocketAddr) -> anyhow::Result<Server> {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--format", "json", "--config"]).arg(&self.policy);
        command.args(["--store", &self.store, "--listen", &grpc.to_string()]);
        command.args(["--admin-listen", &admin.to_string()]).args(self.flags);
        let server = Server::start(command, (!self.unread_log).then_some(&*self.log))?;
        // If the machine runs out of memory, the kernel kills the server first. An error is
        // ignored, because the memory of an attack is bounded anyway.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", server.id()), "1000");
        Ok(server)
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

/// Resets the peak of a process.
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
}
