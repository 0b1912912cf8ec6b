//! The host processes, seen from the soak.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command as Process};
use tokio::time::timeout;

use crate::guest::{Command, Report};
use crate::proxy::Proxy;

/// How long a host may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// The organizations that all hosts serve.
pub(crate) const ORGANIZATIONS: [&str; 3] = ["acme", "globex", "initech"];

/// A host process. It ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct HostProcess {
    pub(crate) name: String,
    child: Child,
    commands: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
    /// Its latest report.
    pub(crate) last: Report,
}

impl HostProcess {
    /// Starts a host that reaches the server through `proxy`.
    ///
    /// # Errors
    ///
    /// The process cannot be started.
    pub(crate) fn start(
        name: String,
        proxy: &Proxy,
        parameters: &str,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("the soak does not know its own file")?;
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut child = Process::new(program)
            .args(["host", "--name", &name, "--server", &proxy.address().to_string()])
            .args(["--parameters", parameters, "--organizations", &ORGANIZATIONS.join(",")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("a host cannot be started")?;
        let commands = child.stdin.take().context("standard input was not piped")?;
        let reports = child.stdout.take().context("standard output was not piped")?;
        let reports = BufReader::new(reports).lines();
        Ok(Self { name, child, commands, reports, last: Report::default() })
    }

    /// Sends the host a command, and returns its report.
    ///
    /// # Errors
    ///
    /// The host has ended (its log says why), or does not answer.
    pub(crate) async fn tell(&mut self, command: Command) -> anyhow::Result<&Report> {
        let answered = timeout(ANSWER, self.exchange(command)).await;
        let report = answered.map_err(|_| anyhow::anyhow!("it does not answer")).flatten();
        self.last = report.with_context(|| format!("the host {}", self.name))?;
        Ok(&self.last)
    }

    async fn exchange(&mut self, command: Command) -> anyhow::Result<Report> {
        let line = serde_json::to_string(&command)? + "\n";
        self.commands.write_all(line.as_bytes()).await.context("it is gone")?;
        let Some(line) = self.reports.next_line().await? else { bail!("it is gone") };
        Ok(serde_json::from_str(&line)?)
    }

    /// Tells the host to return every lease and to exit.
    ///
    /// # Errors
    ///
    /// The host could not return every lease, or exited with an error.
    pub(crate) async fn close(mut self) -> anyhow::Result<()> {
        let left = self.tell(Command::Close).await?.not_returned;
        ensure!(left == 0, "the host {} could not return {left} leases", self.name);
        let status = timeout(ANSWER, self.child.wait()).await.context("it does not end")??;
        ensure!(status.success(), "the host {} ended with {status}", self.name);
        Ok(())
    }

    /// Kills the process, so that it cannot return its leases.
    ///
    /// # Errors
    ///
    /// The operating system refuses.
    pub(crate) async fn kill(mut self) -> anyhow::Result<Report> {
        self.child.kill().await.with_context(|| format!("cannot kill the host {}", self.name))?;
        Ok(self.last)
    }
}
