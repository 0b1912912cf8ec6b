//! The load generator: callers that borrow a session and return it, over the generated client.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::return_worker_response::Status;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{BorrowWorkerResponse, ReturnWorkerRequest};

use crate::ids::{Traces, borrow_request, in_turn};

/// Connections, at most; fewer with fewer callers.
const CONNECTIONS: usize = 8;

/// How long callers run before anything is recorded.
const WARM_UP: Duration = Duration::from_millis(300);

/// The longest latency of the histogram, in nanoseconds: one minute.
const LONGEST: u64 = 60_000_000_000;

/// The key that is sent to the reference server, which gives none.
pub const STAND_IN_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The options of one run of the load generator.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// The address of the server
    #[arg(long)]
    pub address: SocketAddr,
    /// Callers, each with one call in flight
    #[arg(long)]
    pub callers: usize,
    /// Seconds of recording, after a short warm-up
    #[arg(long)]
    pub seconds: f64,
    /// Pairs begun per second, whether earlier ones are answered or not; absent: as fast as the callers can
    #[arg(long)]
    pub rate: Option<f64>,
    /// The server is the reference, which gives no keys: send one of the usual length back
    #[arg(long)]
    pub reference: bool,
}

/// The results of one run of the load generator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Borrows with their returns, per second.
    pub pairs_per_second: f64,
    /// Pairs in all, those of the warm-up too: what the server's CPU time is divided by.
    pub pairs: u64,
    /// Latency of a borrow. With a rate it counts from when the borrow was due, so time spent
    /// waiting behind slow calls is part of it.
    pub borrow: Latency,
    /// Latency of a return.
    pub release: Latency,
}

/// Quantiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// 999 of 1000 are at most this.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Self {
            p50: micros(histogram.value_at_quantile(0.5)),
            p99: micros(histogram.value_at_quantile(0.99)),
            p999: micros(histogram.value_at_quantile(0.999)),
            max: micros(histogram.max()),
        }
    }
}

impl Plan {
    /// Runs the plan on a current-thread runtime.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or one call was not answered as it should be.
    pub fn run(&self) -> anyhow::Result<Measured> {
        ensure!(self.callers > 0, "--callers must be at least 1");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "--rate must be above 0");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(tokio::task::LocalSet::new().run_until(self.play()))
    }

    async fn play(&self) -> anyhow::Result<Measured> {
        let mut channels = Vec::new();
        for _ in 0..self.callers.min(CONNECTIONS) {
            channels.push(connect(self.address).await?);
        }
        let record_from = Instant::now() + WARM_UP;
        let until = record_from + Duration::from_secs_f64(self.seconds);
        let book = Rc::new(RefCell::new(Book::new(record_from)?));
        let arrivals = self.rate.map(|rate| Rc::new(Arrivals::new(rate)));

        let callers: Vec<_> = (0..self.callers)
            .map(|n| {
                let caller = Caller {
                    client: WorkerPoolClient::new(channels[n % channels.len()].clone()),
                    traces: Traces::new(n as u64),
                    turn: n as u64,
                    reference: self.reference,
                };
                tokio::task::spawn_local(caller.run(until, Rc::clone(&book), arrivals.clone()))
            })
            .collect();
        if let Some(arrivals) = &arrivals {
            arrivals.pace(until).await;
        }
        for caller in callers {
            caller.await.context("a caller panicked")??;
        }
        let measured = book.borrow().measured(self.seconds);
        Ok(measured)
    }
}

/// Opens a connection to `address`.
///
/// # Errors
///
/// The connection is refused.
pub async fn connect(address: SocketAddr) -> anyhow::Result<Channel> {
    Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .connect()
        .await
        .with_context(|| format!("cannot connect to {address}"))
}

/// A caller with one call in flight.
struct Caller {
    client: WorkerPoolClient<Channel>,
    traces: Traces,
    turn: u64,
    reference: bool,
}

impl Caller {
    async fn run(
        mut self,
        until: Instant,
        book: Rc<RefCell<Book>>,
        arrivals: Option<Rc<Arrivals>>,
    ) -> anyhow::Result<()> {
        loop {
            let due = match &arrivals {
                None => Instant::now(),
                Some(arrivals) => match arrivals.next().await {
                    Some(due) => due,
                    None => return Ok(()),
                },
            };
            if due >= until {
                return Ok(());
            }
            let key = self.borrow().await?;
            let borrowed = Instant::now();
            self.release(key).await?;
            book.borrow_mut().record(due, borrowed, Instant::now());
        }
    }

    /// Borrows the next session, and returns its key.
    async fn borrow(&mut self) -> anyhow::Result<String> {
        self.turn += 1;
        let answer = borrow(&mut self.client, self.turn, &mut self.traces).await?;
        if self.reference {
            return Ok(STAND_IN_KEY.into());
        }
        ensure!(answer.status() == BorrowStatus::Borrowed, "a borrow was not granted: {answer:?}");
        Ok(answer.worker_key)
    }

    async fn release(&mut self, worker_key: String) -> anyhow::Result<()> {
        let status = give_back(&mut self.client, worker_key).await?;
        ensure!(self.reference || status == Status::Returned, "a return was answered {status:?}");
        Ok(())
    }
}

/// Borrows a session for the organization of this turn, with every id that the client library sends.
pub(crate) async fn borrow(
    client: &mut WorkerPoolClient<Channel>,
    turn: u64,
    traces: &mut Traces,
) -> anyhow::Result<BorrowWorkerResponse> {
    let mut request = tonic::Request::new(borrow_request(in_turn(turn), traces.next_id()));
    let borrow_id = format!("{:032x}", traces.next_borrow_id());
    request.metadata_mut().insert("x-borrow-id", MetadataValue::try_from(borrow_id)?);
    Ok(client.borrow_worker(request).await.context("a borrow failed")?.into_inner())
}

/// Returns a lease, and answers the status.
pub(crate) async fn give_back(
    client: &mut WorkerPoolClient<Channel>,
    worker_key: String,
) -> anyhow::Result<Status> {
    let request = ReturnWorkerRequest { worker_key, minimal_worker_life_duration: None };
    Ok(client.return_worker(request).await.context("a return failed")?.into_inner().status())
}

/// Borrows that are due at a fixed rate, whether the earlier ones are answered or not.
struct Arrivals {
    interval: Duration,
    due: RefCell<VecDeque<Instant>>,
    waiting: Semaphore,
}

impl Arrivals {
    fn new(rate: f64) -> Self {
        Self {
            interval: Duration::from_secs_f64(1.0 / rate),
            due: RefCell::default(),
            waiting: Semaphore::new(0),
        }
    }

    /// Hands out arrivals as they come due, until `until`.
    async fn pace(&self, until: Instant) {
        let mut next = Instant::now();
        while next < until {
            while next <= Instant::now() {
                self.due.borrow_mut().push_back(next);
                self.waiting.add_permits(1);
                next += self.interval;
            }
            // The timer of the runtime ticks in milliseconds, far too coarse here. The load has a
            // core for itself, so it may spin; each yield lets the sockets be served.
            tokio::task::yield_now().await;
        }
        self.waiting.close();
    }

    /// When the next borrow was due; none once the run is over.
    async fn next(&self) -> Option<Instant> {
        self.waiting.acquire().await.ok()?.forget();
        self.due.borrow_mut().pop_front()
    }
}

/// The measurements of the callers.
struct Book {
    record_from: Instant,
    pairs: u64,
    recorded: u64,
    borrow: Histogram<u64>,
    release: Histogram<u64>,
}

impl Book {
    fn new(record_from: Instant) -> anyhow::Result<Self> {
        let histogram = Histogram::new_with_max(LONGEST, 3)?;
        Ok(Self {
            record_from,
            pairs: 0,
            recorded: 0,
            borrow: histogram.clone(),
            release: histogram,
        })
    }

    fn record(&mut self, due: Instant, borrowed: Instant, returned: Instant) {
        self.pairs += 1;
        if returned < self.record_from {
            return;
        }
        self.recorded += 1;
        self.borrow.saturating_record(nanos(borrowed - due));
        self.release.saturating_record(nanos(returned - borrowed));
    }

    fn measured(&self, seconds: f64) -> Measured {
        Measured {
            pairs_per_second: self.recorded as f64 / seconds,
            pairs: self.pairs,
            borrow: Latency::of(&self.borrow),
            release: Latency::of(&self.release),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
