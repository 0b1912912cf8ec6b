//! Everything at once, at random: streams that come and go, a network that fails in every way, a
//! server that dies. Afterwards the server counts exactly what is held.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt as _;
use tgm_session::{Error, Pool, Session, Worker};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::proxy::{Arrival, Flow, Way, Weather};
use crate::world::{POLICY, SECOND, TTL, World, stream};

/// How often the whole is played.
const ROUNDS: u32 = 3;

/// How long things go wrong in each.
const TROUBLE: Duration = Duration::from_secs(300);

/// The ceilings of [`POLICY`].
const CEILINGS: (u64, u64) = (10, 50);

/// A streaming service with a pool of its own.
struct Host {
    name: usize,
    pool: Pool,
    begun: u64,
    streams: Vec<(String, Session, Vec<Worker>)>,
}

fn roll(sides: usize) -> usize {
    rand::rng().random_range(0..sides)
}

fn chance(likely: f64) -> bool {
    rand::rng().random_bool(likely)
}

/// Up to so many milliseconds.
fn up_to(millis: u64) -> Duration {
    Duration::from_millis(rand::rng().random_range(0..millis))
}

impl Host {
    /// Serves streams until `end`.
    async fn run(mut self, end: Instant) -> Self {
        while Instant::now() < end {
            self.act().await;
            sleep(up_to(2_000)).await;
            self.stop_what_ended();
        }
        self
    }

    async fn act(&mut self) {
        let patience = if chance(0.2) { up_to(200) } else { 30 * SECOND };
        match roll(10) {
            0..4 => {
                let trace = format!("{}-{}", self.name, self.begun);
                self.begun += 1;
                // Some callers go away in the middle of a borrow.
                let borrow = self.pool.borrow(stream(&trace));
                match tokio::time::timeout(patience, borrow).await {
                    Ok(Ok(session)) => self.streams.push((trace, session, Vec::new())),
                    Ok(Err(error)) => assert_expected(&error),
                    Err(_) => {}
                }
            }
            4..8 => {
                let Some((_, session, workers)) = self.streams.last_mut() else { return };
                let borrow = session.borrow_worker("t2w", 5);
                match tokio::time::timeout(patience, borrow).await {
                    Ok(Ok(worker)) => workers.push(worker),
                    Ok(Err(error)) => assert_expected(&error),
                    Err(_) => {}
                }
            }
            8 => {
                let Some((_, _, workers)) = self.streams.first_mut() else { return };
                drop(workers.pop());
            }
            _ if self.streams.is_empty() => {}
            _ => {
                let index = roll(self.streams.len());
                let (_, session, workers) = self.streams.swap_remove(index);
                if chance(0.5) {
                    drop((workers, session));
                } else {
                    drop(session.release());
                    drop(workers);
                }
            }
        }
    }

    /// Stops the streams whose session has ended, as an application does that is told so.
    fn stop_what_ended(&mut self) {
        for (_, session, workers) in &mut self.streams {
            let reasons = workers.iter().filter_map(Worker::end_reason);
            reasons.chain(session.end_reason()).for_each(assert_expected);
            workers.retain(|worker| worker.end_reason().is_none());
        }
        self.streams.retain(|(_, session, _)| session.end_reason().is_none());
    }

    /// What it holds, by trace.
    fn holds(&self) -> impl Iterator<Item = (String, u64)> {
        let slots = |workers: &Vec<Worker>| 1 + workers.len() as u64;
        self.streams.iter().map(move |(trace, _, held)| (format!("trace-{trace}"), slots(held)))
    }
}

/// Nothing that goes wrong here is a decision of the operator or a spent budget.
fn assert_expected(error: &Error) {
    let expected = match error {
        Error::Lost { cause } => {
            !matches!(**cause, Error::PermissionDenied { .. } | Error::QuotaExceeded { .. })
        }
        Error::Unavailable { .. }
        | Error::ConcurrentStreamLimitExceeded { .. }
        | Error::WorkersLimitExceeded { .. }
        | Error::SessionNotFound => true,
        _ => false,
    };
    assert!(expected, "{error:?}");
}

fn any_weather() -> Weather {
    let flows = [Flow::Open, Flow::Held, Flow::BlackHole, Flow::Garbled];
    let way = || Way {
        flow: flows[roll(flows.len())],
        delay: up_to(8_000),
        bytes_per_second: chance(0.3).then_some(2_048),
        loss: rand::rng().random_range(0.0..0.5),
    };
    let arrivals = [Arrival::Carried, Arrival::Carried, Arrival::Reset, Arrival::HalfOpen];
    let arrival = arrivals[roll(arrivals.len())];
    Weather { arrival, to_server: way(), to_client: way() }
}

/// Lets one thing after another go wrong until `end`.
async fn trouble(world: &World, end: Instant) {
    while Instant::now() < end {
        sleep(up_to(10_000)).await;
        match roll(6) {
            0 => world.proxy.cut(),
            1 => world.proxy.set(Weather::slow(up_to(3_000))),
            2 => world.proxy.set(Weather::lossy(0.5)),
            3 => {
                world.kill_server();
                // Rarely for longer than the TTL.
                sleep(if chance(0.1) { TTL + 5 * SECOND } else { up_to(20_000) }).await;
                world.start_server(POLICY).await;
            }
            _ => world.proxy.set(any_weather()),
        }
        sleep(up_to(15_000)).await;
        let (sessions, workers) = world.held().await;
        assert!(sessions <= CEILINGS.0 && workers <= CEILINGS.1, "{sessions} {workers}");
        if chance(0.7) {
            world.proxy.clear();
        }
    }
    world.proxy.clear();
}

/// What all hosts hold, by trace.
fn held(hosts: &mut [Host]) -> BTreeMap<String, u64> {
    hosts.iter_mut().for_each(Host::stop_what_ended);
    hosts.iter().flat_map(Host::holds).collect()
}

/// Waits until the server counts what the hosts hold: how many slots, and how long it took.
async fn agreed(world: &World, hosts: &mut [Host]) -> (u64, Duration) {
    let start = Instant::now();
    loop {
        let (held, counted) = (held(hosts), world.held_by_trace().await);
        if held == counted {
            return (counted.values().sum(), start.elapsed());
        }
        assert!(start.elapsed() < 2 * TTL, "held {held:#?}, counted {counted:#?}");
        sleep(SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_any_series_of_faults_the_server_holds_exactly_what_is_held_and_then_nothing() {
    for round in 1..=ROUNDS {
        let world = World::new().await;
        let end = Instant::now() + TROUBLE;
        let mut running = JoinSet::new();
        for name in 0..3 {
            let (pool, _) = world.pool("request-keep-alive-delay=5s");
            running.spawn(Host { name, pool, begun: 0, streams: Vec::new() }.run(end));
        }
        trouble(&world, end).await;
        let mut hosts = running.join_all().await;

        let (slots, took) = agreed(&world, &mut hosts).await;
        println!("round {round}: {slots} slots, {took:?} after the last fault");
        // It stays so when every lease of the bad time has ended and every return was tried.
        sleep(TTL).await;
        assert_eq!(held(&mut hosts), world.held_by_trace().await);
        for host in hosts {
            assert_eq!(host.pool.close(TTL).await.not_returned, 0);
        }
        assert_eq!(world.held().await, (0, 0));
    }
}
