//! One streaming service as a process: it borrows and returns, and reports what it holds when asked.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::host::{Habits, Host};

/// What a host is started with.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The address of the session server
    #[arg(long)]
    server: SocketAddr,
    /// Parameters of its `tgm://` URL
    #[arg(long, default_value = "")]
    parameters: String,
    /// The start of the traces of its streams
    #[arg(long)]
    name: String,
    /// The organizations that the host serves
    #[arg(long, value_delimiter = ',')]
    organizations: Vec<String>,
}

/// The commands to a host, one word per line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Report what it holds.
    Report,
    /// Neither borrow nor return any more.
    Rest,
    /// Return everything, report the result, and end.
    Close,
}

/// What a host answers, one line per command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What the server has to count for it, by trace.
    pub(crate) holds: BTreeMap<String, u64>,
    /// Sessions and workers that were granted.
    pub(crate) granted: u64,
    /// Borrows that a limit refused, and borrows of workers whose session had ended.
    pub(crate) refused: u64,
    /// Borrows that found no server in time.
    pub(crate) unavailable: u64,
    /// Sessions and workers that the host did not end.
    pub(crate) lost: u64,
    /// Leases that a close could not return.
    pub(crate) not_returned: u64,
}

/// Most streams of one host.
const STREAMS: usize = 12;

/// Most workers of one session.
const WORKERS: u32 = 6;

/// The longest pause between two actions of a host.
const PAUSE: Duration = Duration::from_millis(60);

/// How long a close may take.
const CLOSE: Duration = Duration::from_secs(20);

/// Runs a host until it gets the command to close, or its standard input ends.
///
/// # Errors
///
/// The pool cannot be made, or returned an error that no injected fault explains.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let url = format!("tgm://{}?plaintext=true&{}", options.server, options.parameters);
    let habits = Habits {
        name: options.name.clone(),
        organizations: options.organizations.clone(),
        pause: PAUSE,
        streams: STREAMS,
        workers: WORKERS,
    };
    let mut host = Host::new(tgm_session::connect(&url).await?, habits);
    let mut commands = commands();
    let mut resting = false;
    loop {
        // A command that arrives during a borrow cancels the borrow.
        let command = tokio::select! {
            command = commands.recv() => command,
            acted = host.act(), if !resting => {
                acted?;
                continue;
            }
        };
        host.stop_what_ended()?;
        match command {
            None => return Ok(()),
            Some(Command::Report) => {}
            Some(Command::Rest) => resting = true,
            Some(Command::Close) => {
                let closed = host.pool().close(CLOSE).await;
                return tell(&Report { not_returned: closed.not_returned, ..report(&host) });
            }
        }
        tell(&report(&host))?;
    }
}

fn report(host: &Host) -> Report {
    let tally = host.tally();
    Report {
        holds: host.holds(),
        granted: tally.granted,
        refused: tally.refused,
        unavailable: tally.unavailable,
        lost: tally.lost,
        not_returned: 0,
    }
}

fn tell(report: &Report) -> anyhow::Result<()> {
    let line = serde_json::to_string(report)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("nobody listens to the report")
}

/// The commands on standard input, read by a thread that ends with the process.
fn commands() -> mpsc::UnboundedReceiver<Command> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            let Ok(command) = serde_json::from_str(&line) else { return };
            if sender.send(command).is_err() {
                return;
            }
        }
    });
    receiver
}
