//! Calls through a standby beside the same calls at the leader.

use anyhow::Context as _;

use crate::database::Engine;
use crate::fleet::{Fleet, SERVERS};
use crate::h2load::{CONNECTIONS, Load};
use crate::report::{Bound, Cell, Report, Table, median};
use crate::run::bench::{Bench, micros_each};
use crate::run::unary::{Method, body, borrow};

/// Streams of each connection.
const STREAMS: u32 = 32;

/// CPU of both servers for a call that is passed on, over that of a direct one, at most.
const OF_DIRECT: f64 = 2.2;

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let database = Engine::Postgres.start(bench.folder.path())?;
    let fleet = super::start(bench, &database, runtime.handle())?;
    let (leader, _) = fleet.settle()?;
    let standby = (leader + 1) % SERVERS;
    let key = borrow(fleet.address(leader))?;
    let rounds = bench.pick(3, 7);
    let mut table = Table::new(
        format!(
            "Calls through a standby beside direct ones, {CONNECTIONS} × {STREAMS} streams; CPU of leader \
             and standby together; medians, rounds: {rounds}"
        ),
        &["call", "direct CPU µs", "through a standby CPU µs", "of direct"],
    );
    for method in [Method::Borrow, Method::KeepAlive] {
        let body = body(bench, method, &key)?;
        let mut outcomes = Vec::new();
        for round in 0..=rounds {
            eprintln!("{} through a standby and directly, {round}/{rounds}", method.name());
            let requests = bench.pick(20_000, 60_000);
            let one = |at: usize| -> anyhow::Result<f64> {
                let load = Load {
                    address: fleet.address(at),
                    method: method.name(),
                    body: &body,
                    requests,
                    connections: CONNECTIONS,
                    streams: STREAMS,
                };
                let before = cpu(&fleet, leader)? + cpu(&fleet, standby)?;
                load.run()?;
                let after = cpu(&fleet, leader)? + cpu(&fleet, standby)?;
                Ok(micros_each(after.saturating_sub(before), requests))
            };
            let outcome = (one(leader)?, one(standby)?);
            // The first round warms up.
            if round > 0 {
                outcomes.push(outcome);
            }
        }
        let ratio = median(outcomes.iter().map(|(direct, passed_on)| passed_on / direct).collect());
        table.row([
            method.name().into(),
            Cell::Number(median(outcomes.iter().map(|(direct, _)| *direct).collect()), 1),
            Cell::Number(median(outcomes.iter().map(|(_, passed_on)| *passed_on).collect()), 1),
            Cell::Number(ratio, 2),
        ]);
        let about = format!("CPU of a {} through a standby, of a direct one", method.name());
        report.goal(about, ratio, 2, Bound::AtMost(OF_DIRECT));
    }
    report.table(table);
    Ok(())
}

fn cpu(fleet: &Fleet, number: usize) -> anyhow::Result<std::time::Duration> {
    fleet.server(number).context("a server runs")?.cpu()
}
