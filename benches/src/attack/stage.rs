//! The environment of one attack: a server, a well-behaved client, and the judgement.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use benches::process::Server;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::transport::Endpoint;

use crate::bystander::{self, Bystander, Habits};
use crate::calls::{self, BYSTANDER_KEY, Caller};
use crate::connection::{Allowance, Link};
use crate::http;
use crate::options::{Options, Store};
use crate::row::{Row, WAIT_MS, megabytes};
use crate::server::{self, Setup};
use crate::watch::{PROBE_LIMIT, Watch};

/// The memory that the server may use while only the well-behaved client has leases, in bytes.
pub(crate) const MEMORY: u64 = 512 << 20;

/// The additional memory that the server may use for each lease of an attack, in bytes.
pub(crate) const MEMORY_OF_LEASE: u64 = 600;

/// How soon after the attack the server has to recover.
const RECOVERY: Duration = Duration::from_secs(2);

/// How long the well-behaved client runs before the attack.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long to wait for the last calls of the well-behaved client.
const LAST_CALLS: Duration = Duration::from_secs(12);

/// How long a server may take to stop after the attack.
const STOP: Duration = Duration::from_secs(12);

/// The pause before a connection that the server closed is opened again.
const REOPEN: Duration = Duration::from_millis(20);

/// The longest that any attack takes, preparation included.
const LONGEST: Duration = Duration::from_secs(150);

/// The address of the well-behaved client if there are no keys. Then the server distinguishes
/// callers by their address, so no attacker may have this one.
const OTHER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Bytes that an attack may send.
const ALLOWANCE: u64 = 2 << 30;

/// The steps of an attack: it prepares, begins, attacks, ends, and checks the result.
pub(crate) type Play = for<'a> fn(&'a mut Stage) -> Playing<'a>;

/// A running attack.
pub(crate) type Playing<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// What it does, in one sentence.
    pub(crate) about: &'static str,
    /// Flags of the server beyond the usual ones.
    pub(crate) flags: &'static [&'static str],
    /// Whether the policy has indexers.
    pub(crate) indexers: bool,
    /// Whether the server's log goes into a pipe that is not read.
    pub(crate) unread_log: bool,
    /// The store of the attack in the short form. `None` skips the attack there, unless it is
    /// named.
    pub(crate) quick_on: Option<Store>,
    /// Whether the attack also runs on `memory:`.
    pub(crate) on_memory: bool,
    pub(crate) play: Play,
}

/// The environment of one attack.
#[derive(Debug)]
pub(crate) struct Stage {
    /// Whether this is the short form.
    pub(crate) quick: bool,
    /// Where the server keeps its leases.
    pub(crate) store: Store,
    /// The most leases that the attack holds. The memory that the server may use depends on them.
    pub(crate) leases: u64,
    /// Leases that the attack leaves behind, if their number is known.
    pub(crate) leases_after: Option<u64>,
    /// The duration of an attack that does not end by itself.
    pub(crate) span: Duration,
    /// The TTL of [`calls::PASSING`].
    pub(crate) passing: Duration,
    setup: Setup,
    server: Server,
    admin: SocketAddr,
    bystander: Bystander,
    watch: Arc<Watch>,
    allowance: Arc<Allowance>,
    connections_before: f64,
    began: Option<Instant>,
    ended: Option<Instant>,
    row: Row,
}

impl Stage {
    /// Returns `quick` in the short form and `full` in the long form.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// The server's gRPC address and the allowance, for the connections of the attack.
    pub(crate) fn link(&self) -> Link {
        Link { address: self.server.address(), allowance: self.allowance.clone() }
    }

    /// Where the admin port is.
    pub(crate) const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// A caller with the generated client and a connection of its own.
    pub(crate) fn caller(&self, key: &'static str) -> Caller {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.server.address()));
        let endpoint = endpoint.expect("an address makes a URL").timeout(Duration::from_secs(10));
        Caller::new(endpoint.connect_lazy(), Some(key))
    }

    /// Kills the server by SIGKILL and starts it again on its store and ports.
    ///
    /// # Errors
    ///
    /// The server does not start.
    pub(crate) fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.server.kill();
        self.server = self.setup.start(self.server.address(), self.admin)?;
        Ok(())
    }

    /// Ends the preparation and starts the measurements.
    ///
    /// # Errors
    ///
    /// The server is gone.
    pub(crate) fn begin(&mut self) -> anyhow::Result<()> {
        server::reset_peak(self.server.id())?;
        self.watch.begin(self.server.id());
        self.bystander.begin()?;
        self.began = Some(Instant::now());
        Ok(())
    }

    /// Adds a remark.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.row.notes.push(note.into());
    }

    /// Adds a fault.
    pub(crate) fn fault(&mut self, fault: impl Into<String>) {
        self.row.faults.push(fault.into());
    }

    /// Ends the preparation, then runs `play` for each of `connections` numbers at once until the
    /// attack's span is over. A `play` that ends early, because the server closes connections or because
    /// it is done, runs again.
    ///
    /// # Errors
    ///
    /// As [`Stage::begin`].
    pub(crate) async fn crowd<F, P>(&mut self, connections: usize, play: F) -> anyhow::Result<()>
    where
        F: Fn(Link, usize) -> P + Clone + Send + 'static,
        P: Future<Output = anyhow::Result<()>> + Send,
    {
        self.begin()?;
        let over = Instant::now() + self.span;
        let ends = Arc::new(Mutex::new((0_u64, String::new())));
        let mut crowd = JoinSet::new();
        for number in 0..connections {
            let (play, link, ends) = (play.clone(), self.link(), ends.clone());
            crowd.spawn(async move {
                loop {
                    let ended = play(link.clone(), number).await;
                    let why = ended.err().map(|error| format!("{error:#}"));
                    {
                        let (count, last) = &mut *ends.lock();
                        *count += 1;
                        *last = why.unwrap_or_else(|| "it was done".into());
                    }
                    sleep(REOPEN).await;
                }
            });
        }
        sleep_until(over).await;
        crowd.shutdown().await;
        let (ended, last) = &*ends.lock();
        if *ended > 0 {
            self.note(format!("{ended} connections were opened again; the last reason: {last}"));
        }
        Ok(())
    }

    /// Ends the attack, and waits until the server has recovered, for at most 2 s.
    ///
    /// # Errors
    ///
    /// The system does not report the state of the server.
    pub(crate) async fn end(&mut self) -> anyhow::Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        self.ended = Some(now);
        self.bystander.rest();
        loop {
            let problems = self.differences().await;
            if problems.is_empty() {
                self.row.recovered_ms = Some(now.elapsed().as_secs_f64() * 1e3);
                break;
            }
            if now.elapsed() >= RECOVERY {
                let after = RECOVERY.as_secs();
                for problem in problems {
                    self.fault(format!("{after} s after the attack {problem}"));
                }
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        if let Ok((resident, _)) = server::memory(self.server.id()) {
            self.row.after_mb = megabytes(resident);
        }
        let last = Instant::now();
        while self.bystander.is_busy() && last.elapsed() < LAST_CALLS {
            sleep(Duration::from_millis(20)).await;
        }
        self.watch.first_probe().await;
        Ok(())
    }

    /// Judges the attack after its end, and stops the server.
    fn judged(mut self) -> anyhow::Result<Row> {
        let mut row = std::mem::take(&mut self.row);
        if let (Some(began), Some(ended)) = (self.began, self.ended) {
            row.seconds = (ended - began).as_secs_f64();
        } else {
            row.faults.push("the attack did not get as far as to begin".into());
        }
        row.sent_mb = megabytes(self.allowance.sent());
        let peak = server::memory(self.server.id()).map_or(0, |(_, peak)| peak);
        row.peak_mb = megabytes(peak.max(self.watch.peak()));
        row.most_mb = megabytes(MEMORY + self.leases * MEMORY_OF_LEASE);
        row.client = self.bystander.seen();
        let probes = self.watch.probes();
        row.probe_ms = probes.worst.as_secs_f64() * 1e3;
        row.judge(&probes, self.quick);
        drop(self.bystander);
        match self.server.ended()? {
            Some(status) => row.faults.push(format!("the server ended by itself: {status}")),
            None => match self.server.stop(STOP)? {
                Some(status) if status.success() => {}
                Some(status) => row.faults.push(format!("SIGTERM ended it badly: {status}")),
                None => {
                    let limit = STOP.as_secs();
                    row.faults.push(format!("it did not stop within {limit} s after SIGTERM"));
                }
            },
        }
        Ok(row)
    }

    /// What differs from the state of the server before the attack.
    async fn differences(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match http::get(self.admin(), "/readyz", PROBE_LIMIT).await {
            Ok((200, _)) => {}
            Ok((status, body)) => problems.push(format!("/readyz answers {status}: {body}")),
            Err(error) => problems.push(format!("it is not ready: {error:#}")),
        }
        match http::get(self.admin(), "/metrics", PROBE_LIMIT).await {
            Ok((_, page)) => problems.extend(self.differences_in(&page)),
            Err(error) => problems.push(format!("{error:#}")),
        }
        let granted = MEMORY + self.leases * MEMORY_OF_LEASE;
        match server::memory(self.server.id()) {
            Ok((resident, _)) if resident > granted => {
                let (resident, granted) = (megabytes(resident), megabytes(granted));
                problems.push(format!("it takes {resident:.0} MB, and may take {granted:.0}"));
            }
            Ok(_) => {}
            Err(error) => problems.push(format!("it is gone: {error:#}")),
        }
        let mut caller = self.caller(BYSTANDER_KEY);
        let asked = Instant::now();
        let borrowed = timeout(PROBE_LIMIT, async {
            let key = caller.borrow(bystander::ORGANIZATION).await?;
            caller.give_back(&key).await
        });
        match borrowed.await {
            Ok(Ok(())) if asked.elapsed().as_secs_f64() * 1e3 <= 2.0 * WAIT_MS => {}
            Ok(Ok(())) => problems.push(format!(
                "a borrow and return on a fresh connection take {} ms",
                asked.elapsed().as_millis()
            )),
            Ok(Err(error)) => problems.push(format!("a borrow fails: {error:#}")),
            Err(_) => problems.push("a borrow is not answered within 1 s".into()),
        }
        problems
    }

    fn differences_in(&self, page: &str) -> Vec<String> {
        let mut problems = Vec::new();
        let open = http::metric(page, "tgm_session_connections");
        // A connection of a probe may still be closing.
        if open.is_none_or(|open| open > self.connections_before + 1.0) {
            let (open, before) = (open.unwrap_or(f64::NAN), self.connections_before);
            problems.push(format!("{open} connections are open, and {before} were before it"));
        }
        if let Some(left) = self.leases_after {
            let held = (left + self.bystander.holds() as u64) as f64;
            let live = http::metric(page, "tgm_session_live_leases").unwrap_or(f64::NAN);
            if !self.bystander.is_busy() && live != held {
                problems.push(format!("{live} leases count, and {held} are held"));
            }
        }
        problems
    }
}

/// Runs `attack` against a fresh server on `store`, and returns the result.
///
/// # Errors
///
/// The system does not report the state of the server.
pub(crate) async fn run(
    attack: &Attack,
    store: Store,
    options: &Options,
    folder: &Path,
) -> anyhow::Result<Row> {
    let started = Instant::now();
    let raised = timeout(LONGEST, raise(attack, store, options, folder)).await;
    let raised = raised.context("it took too long").and_then(|raised| raised);
    let mut stage = match raised {
        Ok(stage) => stage,
        Err(error) => {
            let mut row = Row::new(attack.name, store);
            row.faults.push(format!("the server does not serve before the attack: {error:#}"));
            return Ok(row);
        }
    };
    let watch = stage.watch.clone();
    let ended = tokio::select! {
        ended = timeout(LONGEST, (attack.play)(&mut stage)) => Some(ended),
        () = watch.too_much() => None,
    };
    match ended {
        Some(Ok(Ok(()))) => {}
        // The attack succeeds against a correct server, so its error is a fault of the server.
        Some(Ok(Err(error))) => stage.fault(format!("the attack found: {error:#}")),
        Some(Err(_)) => stage.fault(format!("the attack did not end in {} s", LONGEST.as_secs())),
        None => stage.fault(format!(
            "the server took more than {} MB, so the attack was broken off",
            options.memory_stop
        )),
    }
    stage.end().await?;
    let mut row = stage.judged()?;
    row.total_seconds = started.elapsed().as_secs_f64();
    Ok(row)
}

/// Starts a server, and a well-behaved client that has warmed up.
async fn raise(
    attack: &Attack,
    store: Store,
    options: &Options,
    folder: &Path,
) -> anyhow::Result<Stage> {
    let pick = |quick, full| Duration::from_millis(if options.quick { quick } else { full });
    let (ttl, passing) = (pick(3_000, 5_000), pick(3_000, 20_000));
    let policy = folder.join("policy.toml");
    fs::write(&policy, calls::policy(ttl, passing, attack.indexers))?;
    let log = folder.join(format!("{}-{store}.log", attack.name));
    let url = match store {
        Store::Memory => "memory:".to_owned(),
        Store::File => {
            let path = folder.join("leases.redb");
            if path.exists() {
                fs::remove_file(&path)?;
            }
            format!("file:{}", path.display())
        }
    };
    let setup = Setup {
        program: options.server.clone(),
        policy,
        store: url,
        flags: attack.flags,
        unread_log: attack.unread_log,
        log,
    };
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = setup.start(free, free)?;
    let admin = server.admin.context("the server told no admin address")?;
    let habits = Habits {
        keep_alive_every: ttl / 4,
        reconnect_every: pick(300, 1_000),
        // Without keys the server distinguishes callers by their address.
        address: (!attack.indexers).then_some(OTHER_ADDRESS),
    };
    let bystander = Bystander::start(server.address(), habits).await?;
    let most_memory = options.memory_stop << 20;
    let watch = Arc::new(Watch::start(server.id(), admin, most_memory)?);
    sleep(WARM_UP).await;
    let (_, page) = http::get(admin, "/metrics", PROBE_LIMIT).await?;
    let connections_before = http::metric(&page, "tgm_session_connections");
    let connections_before = connections_before.context("there is no count of connections")?;
    Ok(Stage {
        quick: options.quick,
        store,
        leases: 0,
        leases_after: Some(0),
        span: pick(700, 4_000),
        passing,
        setup,
        server,
        admin,
        bystander,
        watch,
        allowance: Arc::new(Allowance::new(ALLOWANCE)),
        connections_before,
        began: None,
        ended: None,
        row: Row::new(attack.name, store),
    })
}
