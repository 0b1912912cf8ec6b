//! Single calls from h2load, as fast as the server answers them.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tonic::transport::Channel;
use wire::framing::frame;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as KeptAlive;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{KeepAliveRequest, WorkersStateRequest};

use crate::disk;
use crate::h2load::{CONNECTIONS, Load};
use crate::ids::{SESSIONS, Traces, api_key, borrow_request, organization};
use crate::pairs::{STAND_IN_KEY, connect};
use crate::process::Server;
use crate::report::{Bound, Cell, Report, Table, median};

use super::bench::{Bench, Rounds, Target, micros_each};

/// Streams at once on each connection.
const STREAMS: [u32; 2] = [4, 32];

/// Requests before anything is measured.
const WARM_UP: u64 = 20_000;

/// The two calls that a server answers most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Borrow,
    KeepAlive,
}

impl Method {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Borrow => "BorrowWorker",
            Self::KeepAlive => "KeepAlive",
        }
    }
}

/// One run against one server.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    rate: f64,
    micros: f64,
}

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let rounds = bench.pick(2, 5);
    for method in [Method::Borrow, Method::KeepAlive] {
        for streams in STREAMS {
            let what = format!("{} {CONNECTIONS} × {streams}", method.name());
            let outcomes =
                Rounds::run(&what, rounds, |target| one(bench, method, target, streams))?;
            show(report, method, streams, rounds, &outcomes);
        }
    }
    durable(bench, report)
}

fn show(
    report: &mut Report,
    method: Method,
    streams: u32,
    rounds: u32,
    outcomes: &Rounds<Outcome>,
) {
    let mut table = Table::new(
        format!(
            "{} from h2load, {CONNECTIONS} × {streams} streams; server on one core, load on another; medians, rounds: {rounds}",
            method.name()
        ),
        &["server", "requests/s", "of reference", "CPU µs/request", "of reference"],
    );
    for target in Target::ALL {
        let cpu = outcomes.of_reference(target, |outcome| outcome.micros);
        table.row([
            target.name().into(),
            Cell::Number(outcomes.median(target, |outcome| outcome.rate), 0),
            Cell::Number(outcomes.of_reference(target, |outcome| outcome.rate), 2),
            Cell::Number(outcomes.median(target, |outcome| outcome.micros), 2),
            Cell::Number(cpu, 2),
        ]);
        if target == Target::Memory {
            let most = if streams == 4 { 1.11 } else { 1.18 };
            let name = format!(
                "{} CPU on memory:, {CONNECTIONS} × {streams}, of reference",
                method.name()
            );
            report.goal(name, cpu, 2, Bound::AtMost(most));
        }
    }
    report.table(table);
}

/// One run of one method against a fresh server.
fn one(bench: &Bench, method: Method, target: Target, streams: u32) -> anyhow::Result<Outcome> {
    let server = bench.start(target)?;
    // A durable borrow is several times as slow as any other call.
    let requests = match (method, target) {
        (Method::Borrow, Target::File) => bench.pick(60_000, 200_000),
        _ => bench.pick(150_000, 400_000),
    };
    let (rate, cpu) = load(bench, method, target, &server, requests, streams)?;
    Ok(Outcome { rate, micros: micros_each(cpu, requests) })
}

/// Warms the server up, runs `requests`, and checks that they had an effect.
fn load(
    bench: &Bench,
    method: Method,
    target: Target,
    server: &Server,
    requests: u64,
    streams: u32,
) -> anyhow::Result<(f64, Duration)> {
    let address = server.address();
    let key = if target == Target::Reference { STAND_IN_KEY.into() } else { borrow(address)? };
    let body = body(bench, method, &key)?;
    let warm_up = Load {
        address,
        method: method.name(),
        body: &body,
        requests: WARM_UP,
        connections: CONNECTIONS,
        streams,
    };
    warm_up.run()?;
    let before = server.cpu()?;
    let rate = Load { requests, ..warm_up }.run()?;
    let cpu = server.cpu()?.saturating_sub(before);
    if target != Target::Reference {
        match method {
            // h2load accepts any answer, so the count of the server shows whether each call was granted.
            Method::Borrow => check_count(address, 1 + WARM_UP + requests)?,
            Method::KeepAlive => check_alive(address, key)?,
        }
    }
    Ok((rate, cpu))
}

/// Writes the framed request of `method`.
pub(super) fn body(bench: &Bench, method: Method, key: &str) -> anyhow::Result<PathBuf> {
    let bytes = match method {
        Method::Borrow => frame(&borrow_request(0, Traces::new(2).next_id())),
        Method::KeepAlive => {
            frame(&KeepAliveRequest { worker_key: key.into(), api_key_id: api_key(0) })
        }
    };
    let path = bench.folder.path().join("framed.bin");
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Durable borrows beside what the disk can do, with the server on one core and on all.
fn durable(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Durable borrows on file:, beside this disk's fdatasync of 256 bytes",
        &["callers", "server cores", "borrows/s", "fdatasync/s", "borrows per fdatasync"],
    );
    for (streams, goal) in STREAMS.into_iter().zip([40_000.0, 80_000.0]) {
        let callers = CONNECTIONS * streams;
        for cores in ["0", "0,1"] {
            let mut rates = Vec::new();
            let mut syncs = Vec::new();
            let rounds = bench.pick(1, 3);
            for round in 1..=rounds {
                eprintln!("{callers} durable callers, server on {cores}, round {round}/{rounds}");
                let span = bench.pick(Duration::from_millis(500), Duration::from_secs(1));
                syncs.push(disk::fdatasyncs_per_second(bench.folder.path(), span)?);
                let server = bench.start_on(Target::File, cores)?;
                let requests = bench.pick(60_000, 200_000);
                let (rate, _) =
                    load(bench, Method::Borrow, Target::File, &server, requests, streams)?;
                rates.push(rate);
            }
            let (rate, sync) = (median(rates), median(syncs));
            if cores == "0" {
                let name = format!("durable borrows per second, {callers} callers, one core");
                report.goal(name, rate, 0, Bound::AtLeast(goal));
            }
            table.row([
                Cell::Number(f64::from(callers), 0),
                if cores == "0" { "one" } else { "two, shared with the load" }.into(),
                Cell::Number(rate, 0),
                Cell::Number(sync, 0),
                Cell::Number(rate / sync, 1),
            ]);
        }
    }
    report.table(table);
    Ok(())
}

/// Runs `call` with a client of the server at `address` that has a connection of its own.
fn with_client<T>(
    address: SocketAddr,
    call: impl AsyncFnOnce(&mut WorkerPoolClient<Channel>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { call(&mut WorkerPoolClient::new(connect(address).await?)).await })
}

/// Borrows one session and returns its key.
pub(super) fn borrow(address: SocketAddr) -> anyhow::Result<String> {
    with_client(address, async |client| {
        let answer =
            client.borrow_worker(borrow_request(0, Traces::new(1).next_id())).await?.into_inner();
        ensure!(answer.status() == BorrowStatus::Borrowed, "not granted: {answer:?}");
        Ok(answer.worker_key)
    })
}

/// Checks that the pool holds exactly `leases`.
pub(super) fn check_count(address: SocketAddr, leases: u64) -> anyhow::Result<()> {
    let request = WorkersStateRequest {
        service: SESSIONS.into(),
        organization_id: organization(0),
        api_key_id: api_key(0),
    };
    with_client(address, async |client| {
        let answer = client.workers_state(request).await?.into_inner();
        let held = answer.worker_state.context("no state was answered")?.borrowed_workers;
        ensure!(u64::try_from(held) == Ok(leases), "the pool holds {held} leases, not {leases}");
        Ok(())
    })
}

/// Checks that the lease of `key` is still alive.
pub(super) fn check_alive(address: SocketAddr, worker_key: String) -> anyhow::Result<()> {
    let request = KeepAliveRequest { worker_key, api_key_id: api_key(0) };
    with_client(address, async |client| {
        let status = client.keep_alive(request).await?.into_inner().status();
        ensure!(status == KeptAlive::TtlExtended, "a keep-alive was answered {status:?}");
        Ok(())
    })
}
