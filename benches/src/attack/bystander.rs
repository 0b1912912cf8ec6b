//! The well-behaved client that an attack must not hurt: it has a connection and a key of its own,
//! keeps sessions alive, borrows and returns, and reconnects now and then.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::transport::Endpoint;

use crate::calls::{BYSTANDER_KEY, Caller};

/// Sessions that are held all the time.
pub(crate) const SESSIONS: usize = 200;

/// The organization of these sessions.
pub(crate) const ORGANIZATION: &str = "bystander";

/// How often a session is borrowed and returned.
const PAIR_EVERY: Duration = Duration::from_millis(20);

/// Calls at once on a fresh connection.
const BURST: usize = 200;

/// How long one call may take until it counts as failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// The most calls in flight; those that are due beyond it count as failed.
const MOST: usize = 4_000;

/// The longest wait of the histogram, in microseconds: one minute.
const LONGEST: u64 = 60_000_000;

/// The most problems that are reported.
const TOLD: usize = 3;

/// The behaviour of the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Between two keep-alives of a session; below a third of the TTL.
    pub(crate) keep_alive_every: Duration,
    /// Between two fresh connections.
    pub(crate) reconnect_every: Duration,
    /// The local address of its connections, if it must differ from that of the attacker.
    pub(crate) address: Option<IpAddr>,
}

/// The figures since the last [`Bystander::begin`].
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Seen {
    /// Calls that came due.
    pub(crate) calls: u64,
    /// Waits in milliseconds, from when each call was due.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) worst_ms: f64,
    /// The longest that a fresh connection and all the calls at once on it took.
    pub(crate) reconnect_ms: f64,
    /// How late the machine woke the client for its calls, at the 99th percentile. Waits include it.
    pub(crate) late_ms: f64,
    /// Calls that were not answered as they should be.
    pub(crate) failed: u64,
    /// Sessions that ended although they were kept alive.
    pub(crate) lost: u64,
    /// Some of the problems.
    pub(crate) problems: Vec<String>,
}

/// A client on a thread of its own. It ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct Bystander {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    grpc: SocketAddr,
    habits: Habits,
    figures: Mutex<Figures>,
    held: Mutex<VecDeque<String>>,
    /// Borrows, returns and bursts in flight, without keep-alives.
    in_flight: AtomicUsize,
    resting: AtomicBool,
    over: AtomicBool,
}

/// What the client measures. Times are in microseconds.
#[derive(Debug)]
struct Figures {
    waits: Histogram<u64>,
    late: Histogram<u64>,
    /// The longest reconnect.
    reconnect: u64,
    failed: u64,
    lost: u64,
    problems: Vec<String>,
}

impl Figures {
    fn new() -> anyhow::Result<Self> {
        let waits = Histogram::new_with_max(LONGEST, 3)?;
        let late = waits.clone();
        Ok(Self { waits, late, reconnect: 0, failed: 0, lost: 0, problems: Vec::new() })
    }
}

impl Bystander {
    /// Connects and borrows its sessions.
    ///
    /// # Errors
    ///
    /// A borrow was not granted.
    pub(crate) async fn start(grpc: SocketAddr, habits: Habits) -> anyhow::Result<Self> {
        let state = Arc::new(State {
            grpc,
            habits,
            figures: Mutex::new(Figures::new()?),
            held: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            resting: AtomicBool::new(false),
            over: AtomicBool::new(false),
        });
        let (ready, started) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ours = state.clone();
        let thread = std::thread::Builder::new().name("bystander".into()).spawn(move || {
            runtime.block_on(ours.live(ready));
        })?;
        let this = Self { state, thread: Some(thread) };
        started.await.context("the well-behaved client ended")??;
        Ok(this)
    }

    /// Forgets all figures.
    pub(crate) fn begin(&self) -> anyhow::Result<()> {
        *self.state.figures.lock() = Figures::new()?;
        Ok(())
    }

    /// Borrows nothing more; sessions are still kept alive.
    pub(crate) fn rest(&self) {
        self.state.resting.store(true, Ordering::Release);
    }

    /// How many sessions it holds.
    pub(crate) fn holds(&self) -> usize {
        self.state.held.lock().len()
    }

    /// Whether a borrow, a return or a burst is still in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.state.in_flight.load(Ordering::Acquire) > 0
    }

    /// The figures of the calls that have ended since [`Bystander::begin`].
    pub(crate) fn seen(&self) -> Seen {
        let figures = self.state.figures.lock();
        let millis = |micros: u64| micros as f64 / 1e3;
        Seen {
            calls: figures.waits.len(),
            p50_ms: millis(figures.waits.value_at_quantile(0.5)),
            p99_ms: millis(figures.waits.value_at_quantile(0.99)),
            worst_ms: millis(figures.waits.max()),
            reconnect_ms: millis(figures.reconnect),
            late_ms: millis(figures.late.value_at_quantile(0.99)),
            failed: figures.failed,
            lost: figures.lost,
            problems: figures.problems.clone(),
        }
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread itself.
            drop(thread.join());
        }
    }
}

impl State {
    async fn live(self: Arc<Self>, ready: oneshot::Sender<anyhow::Result<()>>) {
        let caller = Caller::new(self.endpoint().connect_lazy(), Some(BYSTANDER_KEY));
        let begun = self.clone().hold(&caller).await;
        let failed = begun.is_err();
        if ready.send(begun).is_err() || failed {
            return;
        }
        let mut calls = JoinSet::new();
        let every = self.habits.keep_alive_every / SESSIONS as u32;
        let mut beats = paced(every);
        let mut pairs = paced(PAIR_EVERY);
        let mut reconnects = paced(self.habits.reconnect_every);
        while !self.over.load(Ordering::Acquire) {
            // A wait counts from the time when its call was due, so that every delay of the server counts.
            tokio::select! {
                biased;
                due = pairs.tick() => {
                    self.figures.lock().late.saturating_record(micros(due.elapsed()));
                    self.spawn(&mut calls, self.clone().pair(caller.clone(), due));
                }
                due = beats.tick() => {
                    let key = self.held.lock().pop_front();
                    if let Some(key) = key {
                        self.held.lock().push_back(key.clone());
                        calls.spawn(self.clone().keep_alive(caller.clone(), key, due));
                    }
                }
                due = reconnects.tick() => self.spawn(&mut calls, self.clone().reconnect(due)),
            }
            while calls.try_join_next().is_some() {}
        }
        calls.shutdown().await;
    }

    fn endpoint(&self) -> Endpoint {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc));
        let endpoint = endpoint.expect("an address makes a URL").tcp_nodelay(true);
        endpoint.local_address(self.habits.address)
    }

    async fn hold(self: Arc<Self>, caller: &Caller) -> anyhow::Result<()> {
        let mut borrows = JoinSet::new();
        for _ in 0..SESSIONS {
            let mut caller = caller.clone();
            borrows.spawn(async move {
                let borrow = timeout(DEADLINE, caller.borrow(ORGANIZATION));
                borrow.await.context("no answer in time")?
            });
        }
        while let Some(borrowed) = borrows.join_next().await {
            let key =
                borrowed?.context("the well-behaved client cannot borrow before the attack")?;
            self.held.lock().push_back(key);
        }
        Ok(())
    }

    fn spawn(
        self: &Arc<Self>,
        calls: &mut JoinSet<()>,
        call: impl Future<Output = ()> + Send + 'static,
    ) {
        if self.resting.load(Ordering::Acquire) {
            return;
        }
        if calls.len() >= MOST {
            return self.fail(&anyhow::anyhow!("more than {MOST} calls are in flight"));
        }
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        let this = self.clone();
        calls.spawn(async move {
            call.await;
            this.in_flight.fetch_sub(1, Ordering::AcqRel);
        });
    }

    async fn keep_alive(self: Arc<Self>, caller: Caller, key: String, due: Instant) {
        self.clone().extend(caller, key).await;
        self.waited(due);
    }

    async fn extend(self: Arc<Self>, mut caller: Caller, key: String) {
        if self.answer("a keep-alive", caller.keep_alive(&key)).await == Some(false) {
            let mut held = self.held.lock();
            let before = held.len();
            held.retain(|held| *held != key);
            // Several calls may find that the same lease is gone.
            self.figures.lock().lost += (before - held.len()) as u64;
        }
    }

    async fn pair(self: Arc<Self>, mut caller: Caller, due: Instant) {
        let key = self.answer("a borrow", caller.borrow(ORGANIZATION)).await;
        self.waited(due);
        let Some(key) = key else { return };
        let due = Instant::now();
        self.answer("a return", caller.give_back(&key)).await;
        self.waited(due);
    }

    /// Makes many calls at once on a new connection, as a client does that has lost its connection.
    async fn reconnect(self: Arc<Self>, due: Instant) {
        let endpoint = self.endpoint();
        let connect = async { endpoint.connect().await.context("it cannot connect") };
        if let Some(channel) = self.answer("a reconnect", connect).await {
            let caller = Caller::new(channel, Some(BYSTANDER_KEY));
            let keys: Vec<String> = self.held.lock().iter().take(BURST / 2).cloned().collect();
            let mut calls = JoinSet::new();
            for key in keys {
                calls.spawn(self.clone().extend(caller.clone(), key));
            }
            for _ in 0..BURST / 2 {
                let (this, mut caller) = (self.clone(), caller.clone());
                calls.spawn(async move {
                    let borrow = caller.borrow(ORGANIZATION);
                    let Some(key) = this.answer("a borrow after a reconnect", borrow).await else {
                        return;
                    };
                    this.answer("a return after a reconnect", caller.give_back(&key)).await;
                });
            }
            while calls.join_next().await.is_some() {}
        }
        let mut figures = self.figures.lock();
        figures.reconnect = figures.reconnect.max(micros(due.elapsed()));
    }

    /// Records the wait of a call that has its answer.
    fn waited(&self, due: Instant) {
        self.figures.lock().waits.saturating_record(micros(due.elapsed()));
    }

    /// Waits for `call`, and records a failure.
    async fn answer<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = anyhow::Result<T>>,
    ) -> Option<T> {
        let late = |_| anyhow::anyhow!("no answer within {} s", DEADLINE.as_secs());
        let answer = timeout(DEADLINE, call).await.map_err(late).flatten();
        answer.map_err(|error| self.fail(&error.context(what))).ok()
    }

    fn fail(&self, error: &anyhow::Error) {
        let mut figures = self.figures.lock();
        figures.failed += 1;
        let problem = format!("{error:#}");
        if figures.problems.len() < TOLD && !figures.problems.contains(&problem) {
            figures.problems.push(problem);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// An interval that makes up for late ticks, so that no call is left out.
fn paced(every: Duration) -> tokio::time::Interval {
    let mut interval = interval(every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Burst);
    interval
}
