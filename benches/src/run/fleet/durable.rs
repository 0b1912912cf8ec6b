//! Durable borrows by the number of callers, on the file and on every engine of a fleet.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::database::{Database, ENGINES, Engine};
use crate::h2load::Load;
use crate::http;
use crate::pairs::Measured;
use crate::process::{SERVER_CORE, Server};
use crate::raw::commit_batches;
use crate::report::{Bound, Cell, Report, Table, median};
use crate::run::bench::{Bench, answer_of, micros_each, part};
use crate::run::unary::{Method, body, borrow, check_count};

/// Callers as connections and streams of each, and the requests of a full run.
const CALLERS: [(u32, u32, u64); 4] =
    [(1, 1, 4_000), (8, 1, 20_000), (8, 8, 80_000), (8, 32, 240_000)];

/// The number of callers of the goals.
const MANY: u32 = 256;

/// The cost of a durable borrow over the same statements sent by a plain client, at most.
const OF_RAW: f64 = 1.3;

/// How long a server may take until it leads.
const ELECTION: Duration = Duration::from_secs(60);

/// The most time that the admin port may take.
const ANSWER: Duration = Duration::from_secs(5);

/// One run on one store.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    rate: f64,
    /// Borrows of one commit, as the server counts them.
    batch: f64,
    /// CPU of a borrow, in microseconds.
    server: f64,
    database: f64,
    raw: Option<Raw>,
}

/// The same statements with batches of the same size, sent by a plain client.
#[derive(Clone, Copy, Debug)]
struct Raw {
    rate: f64,
    database: f64,
}

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    borrows(bench, report)?;
    pairs(bench, report)
}

/// The stores: the file, and every engine with its goal.
fn stores() -> impl Iterator<Item = (Option<Engine>, &'static str, Option<f64>)> {
    let engines = ENGINES.into_iter().map(|(engine, name, goal)| (Some(engine), name, Some(goal)));
    std::iter::once((None, "file:", None)).chain(engines)
}

fn borrows(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let rounds = bench.pick(1, 3);
    let mut table = Table::new(
        format!(
            "Durable borrows from h2load; server on one core, load on another, database on all; beside the \
             same statements with the same batches from a plain client; medians, rounds: {rounds}"
        ),
        &[
            "store",
            "callers",
            "borrows/s",
            "of one commit",
            "server CPU µs",
            "database CPU µs",
            "raw borrows/s",
            "raw database CPU µs",
            "CPU of raw",
            "time of raw",
        ],
    );
    for (engine, name, goal) in stores() {
        for (connections, streams, requests) in CALLERS {
            let callers = connections * streams;
            let mut outcomes = Vec::new();
            for round in 1..=rounds {
                eprintln!("durable borrows on {name}, {callers} callers, round {round}/{rounds}");
                let requests = bench.pick(requests / 4, requests);
                outcomes.push(one(bench, engine, connections, streams, requests)?);
            }
            let each = |value: fn(&Outcome) -> f64| median(outcomes.iter().map(value).collect());
            let raw = |value: fn(&Outcome, &Raw) -> f64| {
                let values = outcomes.iter().filter_map(|it| Some(value(it, it.raw.as_ref()?)));
                median(values.collect())
            };
            let shown = |value: f64, decimals| {
                if value.is_nan() { Cell::Empty } else { Cell::Number(value, decimals) }
            };
            let (rate, cpu) = (each(|it| it.rate), raw(|it, raw| it.database / raw.database));
            let time = raw(|it, raw| raw.rate / it.rate);
            table.row([
                name.into(),
                Cell::Number(callers.into(), 0),
                Cell::Number(rate, 0),
                Cell::Number(each(|it| it.batch), 1),
                Cell::Number(each(|it| it.server), 1),
                shown(each(|it| it.database), 1),
                shown(raw(|_, raw| raw.rate), 0),
                shown(raw(|_, raw| raw.database), 1),
                shown(cpu, 2),
                shown(time, 2),
            ]);
            if let Some(goal) = goal.filter(|_| callers == MANY) {
                let about = format!("durable borrows per second on {name}, callers: {callers}");
                report.goal(about, rate, 0, Bound::AtLeast(goal));
            }
            if callers == MANY && !cpu.is_nan() {
                let about = format!("database CPU of a borrow on {name}, of the raw statements");
                report.goal(about, cpu, 2, Bound::AtMost(OF_RAW));
                let about = format!("time of a borrow on {name}, of the raw statements");
                report.goal(about, time, 2, Bound::AtMost(OF_RAW));
            }
        }
    }
    report.table(table);
    Ok(())
}

/// Borrows a session, as soon as the server leads. Returns its key.
fn first_borrow(server: &Server) -> anyhow::Result<String> {
    let began = Instant::now();
    loop {
        match borrow(server.address()) {
            Err(error) if began.elapsed() > ELECTION => return Err(error),
            // A server that does not lead holds a call for a while, so this does not spin.
            Err(_) => {}
            Ok(key) => return Ok(key),
        }
    }
}

/// One run on a fresh store.
fn one(
    bench: &Bench,
    engine: Option<Engine>,
    connections: u32,
    streams: u32,
    requests: u64,
) -> anyhow::Result<Outcome> {
    let database = engine.map(|engine| engine.start(bench.folder.path())).transpose()?;
    let store = match &database {
        None => bench.fresh_file()?,
        Some(database) => database.url(),
    };
    let server = bench.start_store(&store, &bench.policy, SERVER_CORE)?;
    let (address, admin) = (server.address(), server.admin.context("it has an admin port")?);
    let body = body(bench, Method::Borrow, &first_borrow(&server)?)?;
    let method = Method::Borrow.name();
    let warm_up =
        Load { address, method, body: &body, requests: requests / 4, connections, streams };
    warm_up.run()?;
    let before = (server.cpu()?, cpu(database.as_ref())?, commits(admin)?);
    let rate = Load { requests, ..warm_up }.run()?;
    let after = (server.cpu()?, cpu(database.as_ref())?, commits(admin)?);
    check_count(address, 1 + warm_up.requests + requests)?;
    drop(server);
    let batch = (after.2.0 - before.2.0) / (after.2.1 - before.2.1);
    let raw = match &database {
        Some(database @ Database::Postgres(_)) => Some(raw(bench, database, batch)?),
        Some(Database::Etcd(_)) | None => None,
    };
    Ok(Outcome {
        rate,
        batch,
        server: micros_each(after.0.saturating_sub(before.0), requests),
        database: match database {
            None => f64::NAN,
            Some(_) => micros_each(after.1.saturating_sub(before.1), requests),
        },
        raw,
    })
}

fn cpu(database: Option<&Database>) -> anyhow::Result<Duration> {
    database.map_or(Ok(Duration::ZERO), Database::cpu)
}

/// The changes that were committed so far, and the commits that had any.
fn commits(admin: SocketAddr) -> anyhow::Result<(f64, f64)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (_, page) = runtime.block_on(http::get(admin, "/metrics", ANSWER))?;
    let metric = |name| http::metric(&page, name).context("the metrics of commits are missing");
    let changes = metric("tgm_session_store_commit_changes_sum")?;
    Ok((changes, metric("tgm_session_store_commit_changes_count")?))
}

/// Sends the statements of batches of this size to the database that a server has left.
fn raw(bench: &Bench, database: &Database, batch: f64) -> anyhow::Result<Raw> {
    let span = bench.pick(Duration::from_secs(1), Duration::from_secs(3));
    let before = database.cpu()?;
    let committed = commit_batches(&database.url(), (batch.round() as usize).max(1), span)?;
    let cpu = database.cpu()?.saturating_sub(before);
    Ok(Raw {
        rate: committed.borrows as f64 / committed.took.as_secs_f64(),
        database: micros_each(cpu, committed.borrows),
    })
}

/// Pairs as streaming services make them: other organizations and traces, borrow ids, and returns.
fn pairs(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        format!("Borrow, then return, durably; callers: {MANY}, on the generated client"),
        &[
            "store",
            "pairs/s",
            "server CPU µs/pair",
            "database CPU µs/pair",
            "borrow p50 µs",
            "p99 µs",
            "return p50 µs",
            "p99 µs",
        ],
    );
    for (engine, name, _) in stores() {
        eprintln!("borrow and return on {name}");
        let database = engine.map(|engine| engine.start(bench.folder.path())).transpose()?;
        let store = match &database {
            None => bench.fresh_file()?,
            Some(database) => database.url(),
        };
        let server = bench.start_store(&store, &bench.policy, SERVER_CORE)?;
        first_borrow(&server)?;
        let mut command = part("pairs")?;
        command.args(["--address", &server.address().to_string()]);
        command.args(["--callers", &MANY.to_string(), "--seconds", bench.pick("2", "5")]);
        let before = (server.cpu()?, cpu(database.as_ref())?);
        let measured: Measured = answer_of(command).with_context(|| name.to_owned())?;
        let used = server.cpu()?.saturating_sub(before.0);
        let database_used = cpu(database.as_ref())?.saturating_sub(before.1);
        table.row([
            name.into(),
            Cell::Number(measured.pairs_per_second, 0),
            Cell::Number(micros_each(used, measured.pairs), 1),
            match database {
                None => Cell::Empty,
                Some(_) => Cell::Number(micros_each(database_used, measured.pairs), 1),
            },
            Cell::Number(measured.borrow.p50, 0),
            Cell::Number(measured.borrow.p99, 0),
            Cell::Number(measured.release.p50, 0),
            Cell::Number(measured.release.p99, 0),
        ]);
    }
    report.table(table);
    Ok(())
}
