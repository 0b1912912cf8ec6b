//! The pool of the client library: many leases held for a while, and what the pool adds to a call.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context as _, ensure};

use crate::pool::{Bytes, Cost, Held};
use crate::process::{LOAD_CORE, SERVER_CORE, Server, pinned};
use crate::report::{Bound, Cell, Report, Table, median};

use super::bench::{Bench, Target, answer_of, counting, part};

/// No limits, and the default TTL: 60 s, with keep-alives every 20 s.
const DEFAULTS: &str = "[services.t1r]\n[services.t2w]\n";

/// The longest time between two keep-alives of a lease that the URL's default allows, in seconds.
const DELAY: f64 = 20.0;

/// The goals of the issue that asked for this: bytes of a held lease, the share of a core, gaps
/// in delays, and CPU of a borrow over that of the bare call.
const BYTES: f64 = 1024.0;
const SHARE: f64 = 5.0;
const GAP: f64 = 1.5;
const OVERHEAD: f64 = 1.1;

/// Callers of the borrows.
const CALLERS: [u32; 2] = [1, 32];

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    hold(bench, report)?;
    memory(bench, report)?;
    borrow(bench, report)
}

/// Starts a fresh server whose leases live as long as by default.
fn server_of_defaults(bench: &Bench) -> anyhow::Result<Server> {
    let policy = bench.folder.path().join("defaults.toml");
    fs::write(&policy, DEFAULTS).with_context(|| format!("cannot write {}", policy.display()))?;
    bench.start_with(Target::Memory, &policy, SERVER_CORE)
}

/// A server in front of the one at `address` that does not know the stream of keep-alives.
fn gateway(bench: &Bench, address: SocketAddr) -> anyhow::Result<Server> {
    let mut command = pinned(LOAD_CORE, &std::env::current_exe()?);
    command.args(["gateway", "--address", &address.to_string()]);
    Server::start(command, Some(&bench.folder.path().join("gateway.log")))
}

fn sessions(bench: &Bench) -> &'static str {
    bench.pick("20000", "100000")
}

fn hold(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let seconds = bench.pick("45", "60");
    let mut table = Table::new(
        format!(
            "One process holds sessions with two workers each for {seconds} s, a keep-alive of each \
             every {DELAY} s; client on one core, server on another"
        ),
        &[
            "keep-alives",
            "leases",
            "set up in s",
            "keep-alives/s",
            "client % of a core",
            "server % of a core",
            "longest gap s",
        ],
    );
    for attached in [true, false] {
        let name = if attached { "over Attach" } else { "by unary calls" };
        eprintln!("{} sessions with two workers each, kept alive {name}", sessions(bench));
        let server = server_of_defaults(bench)?;
        let gateway = (!attached).then(|| gateway(bench, server.address())).transpose()?;
        let address = gateway.as_ref().map_or(server.address(), Server::address);
        let mut command = part("hold")?;
        command.args(["--address", &address.to_string(), "--server", &server.id().to_string()]);
        command.args(["--sessions", sessions(bench), "--workers", "2", "--seconds", seconds]);
        let held: Held = answer_of(command).with_context(|| name.to_owned())?;
        ensure!(held.attached == attached, "keep-alives went the other way than {name}");
        let (client, server) = (held.client * 100.0, held.server * 100.0);
        table.row([
            name.into(),
            Cell::Number(held.leases as f64, 0),
            Cell::Number(held.set_up, 1),
            Cell::Number(held.keep_alives, 0),
            Cell::Number(client, 1),
            Cell::Number(server, 1),
            Cell::Number(held.longest_gap, 1),
        ]);
        let leases = held.leases;
        if attached {
            let most = Bound::AtMost(SHARE);
            report.goal(format!("client % of a core, {leases} leases {name}"), client, 1, most);
            report.goal(format!("server % of a core, {leases} leases {name}"), server, 1, most);
        }
        let gap = held.longest_gap / DELAY;
        let about = format!("longest gap in delays, {leases} leases {name}");
        report.goal(about, gap, 2, Bound::AtMost(GAP));
    }
    report.table(table);
    Ok(())
}

fn memory(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("memory of a pool");
    let mut table = Table::new(
        "Memory of a pool over Attach, every allocation counted, guards and ids included",
        &["workers of each session", "leases", "bytes each"],
    );
    for workers in ["0", "2"] {
        let server = server_of_defaults(bench)?;
        let mut command = counting("pool")?;
        command.args(["--address", &server.address().to_string()]);
        command.args(["--sessions", sessions(bench), "--workers", workers]);
        let bytes: Bytes = answer_of(command)?;
        if workers == "2" {
            let name = format!("bytes per held lease in the client at {}", bytes.leases);
            report.goal(name, bytes.each, 0, Bound::AtMost(BYTES));
        }
        table.row([
            workers.into(),
            Cell::Number(bytes.leases as f64, 0),
            Cell::Number(bytes.each, 0),
        ]);
    }
    report.table(table);
    Ok(())
}

/// Borrows and returns of one thread, through the pool and by bare calls.
fn borrow(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let rounds = bench.pick(3, 9);
    let mut table = Table::new(
        format!(
            "A session borrowed and returned through the pool, beside bare calls of the generated \
             client; medians, rounds: {rounds}"
        ),
        &[
            "callers",
            "call",
            "bare CPU µs",
            "pool CPU µs",
            "of bare",
            "bare p50 µs",
            "pool p50 µs",
            "of bare",
            "pool p99 µs",
        ],
    );
    for callers in CALLERS {
        let mut outcomes = Vec::new();
        for round in 1..=rounds {
            eprintln!("borrow through the pool and without, {callers} callers, {round}/{rounds}");
            outcomes.push((one(bench, callers, true)?, one(bench, callers, false)?));
        }
        let bare = |value: fn(&Cost) -> f64| {
            median(outcomes.iter().map(|(bare, _)| value(bare)).collect())
        };
        let pool = |value: fn(&Cost) -> f64| {
            median(outcomes.iter().map(|(_, pool)| value(pool)).collect())
        };
        // The ratio is taken within a round, because the speed of the machine may change between
        // rounds.
        let ratio = |value: fn(&Cost) -> f64| {
            median(outcomes.iter().map(|(bare, pool)| value(pool) / value(bare)).collect())
        };
        table.row([
            Cell::Number(f64::from(callers), 0),
            "borrow".into(),
            Cell::Number(bare(|cost| cost.borrow), 1),
            Cell::Number(pool(|cost| cost.borrow), 1),
            Cell::Number(ratio(|cost| cost.borrow), 2),
            Cell::Number(bare(|cost| cost.p50), 0),
            Cell::Number(pool(|cost| cost.p50), 0),
            Cell::Number(ratio(|cost| cost.p50), 2),
            Cell::Number(pool(|cost| cost.p99), 0),
        ]);
        table.row([
            Cell::Number(f64::from(callers), 0),
            "return".into(),
            Cell::Number(bare(|cost| cost.give_back), 1),
            Cell::Number(pool(|cost| cost.give_back), 1),
            Cell::Number(ratio(|cost| cost.give_back), 2),
            Cell::Empty,
            Cell::Empty,
            Cell::Empty,
            Cell::Empty,
        ]);
        let name = format!("CPU of a borrow over the bare call, callers: {callers}");
        report.goal(name, ratio(|cost| cost.borrow), 2, Bound::AtMost(OVERHEAD));
    }
    report.table(table);
    Ok(())
}

fn one(bench: &Bench, callers: u32, bare: bool) -> anyhow::Result<Cost> {
    let server = bench.start(Target::Memory)?;
    let mut command = part("borrow")?;
    command.args(["--address", &server.address().to_string()]);
    command.args(["--callers", &callers.to_string()]);
    command.args(["--count", if callers == 1 { "10000" } else { "40000" }]);
    if bare {
        command.arg("--bare");
    }
    answer_of(command).with_context(|| format!("{callers} callers, bare: {bare}"))
}
