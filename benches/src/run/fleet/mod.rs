//! A fleet on a database: what a durable borrow costs, calls that are passed on, and changes of the leader.

use std::time::Duration;

use tokio::runtime::Handle;

use crate::database::Database;
use crate::fleet::{Fleet, Setup};
use crate::report::Report;

use super::bench::{Bench, POLICY};

mod durable;
mod forwarded;
mod takeover;

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    durable::measure(bench, report)?;
    forwarded::measure(bench, report)?;
    takeover::measure(bench, report)
}

/// Starts three servers on `database`, each with one serving thread.
fn start(bench: &Bench, database: &Database, runtime: &Handle) -> anyhow::Result<Fleet> {
    let setup = Setup {
        program: bench.options.server.clone(),
        folder: bench.folder.path().to_owned(),
        policy: POLICY.to_owned(),
        leader_ttl: Duration::from_secs(bench.options.leader_ttl),
        store: database.url(),
        network: None,
        arguments: ["--threads", "1", "--log-format", "json"].map(Into::into).into(),
    };
    Fleet::start(setup, runtime)
}
