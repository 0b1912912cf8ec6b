//! How long it takes until another server leads, and what one leader reaches.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::worker_pool_client::WorkerPoolClient;

use crate::database::{Database, ENGINES};
use crate::fleet::{Fleet, SERVERS};
use crate::h2load::{CONNECTIONS, Load};
use crate::http;
use crate::ids::Traces;
use crate::pairs;
use crate::process::{children_cpu_of, memory_of};
use crate::report::{Bound, Cell, Report, Table, median, percentile};
use crate::run::bench::{Bench, part};
use crate::run::unary::{Method, body, borrow};

/// How long one borrow may take after the leader was killed, before it is sent again.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Between two borrows of a caller that is refused.
const AGAIN: Duration = Duration::from_millis(2);

/// How long the next grant may take at all.
const PATIENCE: Duration = Duration::from_secs(120);

/// The next grant comes within the leader TTL and this many seconds.
const TAKEOVER: f64 = 2.0;

/// Streams of each connection.
const STREAMS: u32 = 32;

/// One change of the leader, in seconds.
#[derive(Clone, Copy, Debug)]
struct Takeover {
    /// From the kill until the next grant.
    grant: f64,
    /// How long the new leader read the leases.
    load: f64,
}

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let ttl = bench.options.leader_ttl;
    let mut takeovers = Table::new(
        format!("From a kill -9 of the leader until the next grant; leader TTL: {ttl} s"),
        &["store", "live leases", "kills", "min s", "median s", "p90 s", "max s", "load s"],
    );
    let mut reached = Table::new(
        "What one leader reaches, 8 × 32 streams, the leader with one serving thread",
        &[
            "store",
            "live leases",
            "call",
            "calls/s",
            "leader % of a core",
            "database % of a core",
            "load % of a core",
            "leader bytes/lease",
            "database bytes/lease",
        ],
    );
    // The number of leases, the kills, and whether they are part of the goal.
    let stages = bench.pick(
        [(20_000, 4, true), (100_000, 2, false)],
        [(100_000, 30, true), (1_000_000, 5, false)],
    );
    for (engine, name, _) in ENGINES {
        let database = engine.start(bench.folder.path())?;
        let mut fleet = super::start(bench, &database, runtime.handle())?;
        let mut live: u64 = 0;
        for (leases, kills, is_goal) in stages {
            let (leader, _) = fleet.settle()?;
            eprintln!("{leases} leases on {name}");
            fill(&fleet, leader, leases - live)?;
            live = leases;
            let mut all = Vec::new();
            for kill in 1..=kills {
                eprintln!("kill {kill}/{kills} of the leader, {leases} leases on {name}");
                all.push(take_over(&mut fleet, runtime.handle())?);
            }
            let (leader, _) = fleet.settle()?;
            check_live(&fleet, leader, leases, runtime.handle())?;
            let mut times: Vec<f64> = all.iter().map(|it| it.grant).collect();
            times.sort_by(f64::total_cmp);
            let last = times.len() - 1;
            takeovers.row([
                name.into(),
                Cell::Number(leases as f64, 0),
                Cell::Number(f64::from(kills), 0),
                Cell::Number(times[0], 2),
                Cell::Number(median(times.clone()), 2),
                Cell::Number(percentile(times.clone(), 90), 2),
                Cell::Number(times[last], 2),
                Cell::Number(median(all.iter().map(|it| it.load).collect()), 2),
            ]);
            if is_goal {
                let about = format!("longest time to the next grant on {name}, {leases} leases");
                report.goal(about, times[last], 2, Bound::AtMost(ttl as f64 + TAKEOVER));
            }
            reach(bench, &mut reached, &fleet, leader, (name, &database), leases)?;
        }
    }
    report.table(takeovers);
    report.table(reached);
    Ok(())
}

/// Borrows so many sessions at the leader.
fn fill(fleet: &Fleet, leader: usize, sessions: u64) -> anyhow::Result<()> {
    let mut command = part("fill")?;
    command.args(["--address", &fleet.address(leader).to_string()]);
    command.args(["--sessions", &sessions.to_string()]);
    let output = command.output().context("the program starts itself")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Kills the leader, waits for a grant at another server, and starts the killed one again.
fn take_over(fleet: &mut Fleet, runtime: &Handle) -> anyhow::Result<Takeover> {
    let (leader, term) = fleet.settle()?;
    let others: Vec<_> =
        (0..SERVERS).filter(|it| *it != leader).map(|it| fleet.address(it)).collect();
    let killed = Instant::now();
    fleet.kill_server(leader);
    let grant = runtime.block_on(first_grant(others))?.duration_since(killed).as_secs_f64();
    fleet.start_server(leader)?;
    let (leader, next) = fleet.settle()?;
    ensure!(next == term + 1, "the leader changed {} times", next - term);
    let log = fs::read_to_string(fleet.log(leader))?;
    let load = load_time(&log).context("the log of the leader tells when it began to serve")?;
    Ok(Takeover { grant, load })
}

/// When one of these servers grants a lease.
async fn first_grant(servers: Vec<SocketAddr>) -> anyhow::Result<Instant> {
    let mut callers = JoinSet::new();
    for (number, address) in servers.into_iter().enumerate() {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.timeout(ATTEMPT);
        let mut client = WorkerPoolClient::new(endpoint.connect_lazy());
        callers.spawn(async move {
            // Every caller of every kill has traces of its own.
            let mut traces = Traces::new(crate::process::now() + number as u64);
            loop {
                let asked = pairs::borrow(&mut client, number as u64, &mut traces).await;
                if asked.is_ok_and(|answer| answer.status() == BorrowStatus::Borrowed) {
                    return Instant::now();
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }
    let first = tokio::time::timeout(PATIENCE, callers.join_next());
    Ok(first.await.context("nothing is granted any more")?.context("there are callers")??)
}

/// The seconds from the last election of this server until it served, by its log.
fn load_time(log: &str) -> Option<f64> {
    let at = |message: &str| {
        let line = log.lines().rfind(|line| line.contains(message))?;
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let (_, time) = line["timestamp"].as_str()?.split_once('T')?;
        let mut parts = time.trim_end_matches('Z').split(':').map(str::parse::<f64>);
        let mut next = || parts.next()?.ok();
        Some(next()? * 3600.0 + next()? * 60.0 + next()?)
    };
    let took = at("serves as the leader of the fleet")? - at("leads the fleet")?;
    Some(if took < 0.0 { took + 86_400.0 } else { took })
}

/// Checks that the leader has at least so many leases.
fn check_live(fleet: &Fleet, leader: usize, leases: u64, runtime: &Handle) -> anyhow::Result<()> {
    let admin = fleet.server(leader).and_then(|it| it.admin).context("the leader runs")?;
    let (_, page) = runtime.block_on(http::get(admin, "/metrics", ATTEMPT))?;
    let live = http::metric(&page, "tgm_session_live_leases").context("leases are counted")?;
    ensure!(live >= leases as f64, "{live} leases of {leases} are there after the kills");
    Ok(())
}

/// The rate of both calls at the leader, with what each process uses meanwhile.
fn reach(
    bench: &Bench,
    table: &mut Table,
    fleet: &Fleet,
    leader: usize,
    (name, database): (&str, &Database),
    leases: u64,
) -> anyhow::Result<()> {
    let server = fleet.server(leader).context("the leader runs")?;
    let bytes = [memory_of(server.id())?, database.bytes()?];
    let key = borrow(fleet.address(leader))?;
    for method in [Method::Borrow, Method::KeepAlive] {
        eprintln!("{} at the leader with {leases} leases on {name}", method.name());
        let body = body(bench, method, &key)?;
        let requests = bench.pick(40_000, 200_000);
        let load = Load {
            address: fleet.address(leader),
            method: method.name(),
            body: &body,
            requests,
            connections: CONNECTIONS,
            streams: STREAMS,
        };
        let before = [server.cpu()?, database.cpu()?, children_cpu_of(std::process::id())?];
        let began = Instant::now();
        let rate = load.run()?;
        let took = began.elapsed().as_secs_f64();
        let after = [server.cpu()?, database.cpu()?, children_cpu_of(std::process::id())?];
        let share = |at: usize| {
            let used = after[at].saturating_sub(before[at]).as_secs_f64();
            Cell::Number(used / took * 100.0, 0)
        };
        let each = |at: usize| Cell::Number(bytes[at] as f64 / leases as f64, 0);
        table.row([
            name.into(),
            Cell::Number(leases as f64, 0),
            method.name().into(),
            Cell::Number(rate, 0),
            share(0),
            share(1),
            share(2),
            each(0),
            each(1),
        ]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_the_load_is_read_from_the_log_of_the_last_term() {
        let log = "{\"timestamp\":\"2026-11-28T10:00:00.000000Z\",\"message\":\"leads the fleet\"}\n\
                   {\"timestamp\":\"2026-11-28T10:00:09.000000Z\",\"message\":\"serves as the leader of the fleet\"}\n\
                   {\"timestamp\":\"2026-11-28T23:59:59.500000Z\",\"message\":\"leads the fleet\"}\n\
                   {\"timestamp\":\"2026-11-29T00:00:00.750000Z\",\"message\":\"serves as the leader of the fleet\"}\n";
        assert_eq!(load_time(log), Some(1.25));
        assert_eq!(load_time("{}\n"), None);
    }
}
