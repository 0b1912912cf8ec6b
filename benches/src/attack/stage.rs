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

/// What the server may take with no leases but those of the well-behaved client, in bytes.
pub(crate) const MEMORY: u64 = 512 << 20;

/// What it may take for each lease of an attack on top, in bytes.
pub(crate) const MEMORY_OF_LEASE: u64 = 600;

/// How soon after the attack the server has to be as before.
const RECOVERY: Duration = Duration::from_secs(2);

/// How long the well-behaved client is watched before the attack.
const WARM_UP: Duration = Duration::from_millis(300);

/// How long the last calls of the well-behaved client are waited for.
const LAST_CALLS: Duration = Duration::from_secs(12);

/// How long a server may take to stop after the attack.
const STOP: Duration = Duration::from_secs(12);

/// Before a connection that the server closed is opened anew.
const REOPEN: Duration = Duration::from_millis(20);

/// The longest that any attack takes, preparation included.
const LONGEST: Duration = Duration::from_secs(150);

/// The address of the well-behaved client where no keys tell callers apart, as no attacker has it.
const OTHER_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Bytes that an attack may send.
const ALLOWANCE: u64 = 2 << 30;

/// What an attack does: it prepares, begins, attacks, ends, and looks at what is left.
pub(crate) type Play = for<'a> fn(&'a mut Stage) -> Playing<'a>;

/// An attack under way.
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
    /// Whether nobody reads the server's log.
    pub(crate) unread_log: bool,
    /// Where it is made in the short form; nowhere unless it is named.
    pub(crate) quick_on: Option<Store>,
    /// Whether it is made on `memory:` too.
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
    /// Leases that the attack holds at most: memory is granted for them.
    pub(crate) leases: u64,
    /// Leases that the attack leaves behind, where that is known.
    pub(crate) leases_after: Option<u64>,
    /// How long an attack goes on that has no end of its own.
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
    /// The first of the short form, the second of the long one.
    pub(crate) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Where the attack's connections go.
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
    /// It does not come back.
    pub(crate) fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        self.server.kill();
        self.server = self.setup.start(self.server.address(), self.admin)?;
        Ok(())
    }

    /// Ends the preparation: from now on everything is measured.
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

    /// The attack is over: waits until the server is as before, for at most 2 s.
    ///
    /// # Errors
    ///
    /// The system does not tell about the server.
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
/// The system does not tell about the server.
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
        // The server is what does not do as it should: the attack itself works against a good one.
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
        // Without keys an address is all that tells callers apart.
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
