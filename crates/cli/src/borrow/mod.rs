//! `borrow`: hold one session, and say what becomes of it.

mod event;

use std::num::ParseIntError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tgm_session::{Dsn, Error, Pool, Registry, Session, SessionRequest, TgmPool, Worker};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};

use crate::bar::Bar;
use crate::borrow::event::{Event, Kind};
use crate::failure::Failure;
use crate::output::Output;
use crate::signals::Signals;

const ABOUT: &str = "\
Everything is returned before it exits, on Ctrl-C too; a second Ctrl-C leaves at once, and the
server frees the slots one TTL later.

  tgm-session borrow 'tgm://127.0.0.1:9010?plaintext=true' --organization acme --workers 4
  tgm-session borrow 'tgm://HOST?indexer-api-key=$KEY' --organization acme --for 1m
  tgm-session borrow 'local://?max_sessions=1' --organization acme --for 5s

$VAR and ${VAR} in a URL are replaced from the environment: single quotes keep keys out of sight.

Exit codes: 0 returned, 2 a wrong flag or URL, 3 refused or revoked, 4 the server is unavailable.";

/// How long the returns at the end may take.
const CLOSING: Duration = Duration::from_secs(10);
/// Longer than any process lives.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How often the screen and the server's count are brought up to date.
const TICK: Duration = Duration::from_secs(1);
/// The most workers one session may be given here: a tool to look at things, not to load them.
const MOST_WORKERS: u32 = 10_000;

/// Hold a session, and workers under it, until a time or Ctrl-C; show what happens.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The session URL: tgm://HOST[:PORT]?PARAMETERS, or local://.
    url: String,

    /// The organization that the session counts for.
    #[arg(long, value_name = "ID")]
    organization: String,

    /// The service of the session, as the server's policy names it.
    #[arg(long, value_name = "NAME", default_value = "t1r")]
    service: String,

    /// How many workers to hold under the session.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = workers)]
    workers: u32,

    /// The service of the workers.
    #[arg(long, value_name = "NAME", default_value = "t2w")]
    worker_service: String,

    /// The most workers the session may have; the server refuses the rest [default: --workers].
    #[arg(long, value_name = "N")]
    max_workers: Option<u32>,

    /// The id of the API key the stream came with [default: none].
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    api_key_id: String,

    /// The trace id that ties workers to the session [default: a new random one].
    #[arg(long, value_name = "ID")]
    trace: Option<String>,

    /// How long to hold it, like 90s or 1h30m [default: until Ctrl-C].
    #[arg(long = "for", value_name = "DURATION", value_parser = tgm_session::parse_duration)]
    length: Option<Duration>,
}

fn workers(text: &str) -> Result<u32, String> {
    let count: u32 = text.parse().map_err(|error: ParseIntError| error.to_string())?;
    if count > MOST_WORKERS {
        return Err(format!("at most {MOST_WORKERS} here"));
    }
    Ok(count)
}

/// Runs the command.
pub(crate) fn run(args: Args, output: Output) -> Result<(), Failure> {
    let runtime = crate::runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::take_with_hangup()?;
        let (pool, server) = connect(&args.url).await?;
        let mut holder = Holder::new(args, output, server);
        let outcome = holder.hold(&pool, &mut signals).await;
        // Nothing stays taken, however that went.
        let closed = tokio::select! {
            closed = holder.close(&pool) => closed,
            name = signals.next() => Err(Failure::Failed(format!(
                "left at once on a second signal ({name}); what was held ends with its TTL"
            ))),
        };
        outcome.and(closed)
    });
    // What the pool could not return by now it never will.
    runtime.shutdown_background();
    outcome
}

/// Makes the pool of `url`, and keeps the way to ask its server when there is one.
async fn connect(url: &str) -> Result<(Pool, Option<Arc<TgmPool>>), Failure> {
    let dsn = Dsn::parse(url)?;
    if dsn.scheme() == "tgm" {
        let server = Arc::new(TgmPool::from_dsn(&dsn)?);
        return Ok((Pool::new(server.clone()), Some(server)));
    }
    Ok((Registry::default().connect(url).await?, None))
}

/// The one who holds the session.
struct Holder {
    args: Args,
    trace: String,
    output: Output,
    server: Option<Arc<TgmPool>>,
    since: Instant,
    told: Told,
}

/// What was told last, so that only news are told.
#[derive(Default)]
struct Told {
    /// How full the pool is; active and ceiling.
    pool: Option<(u64, Option<u64>)>,
    silent: bool,
    keep_alives: u64,
    keys: Vec<Arc<str>>,
}

/// What is held. The session goes last, as its guard would see to.
struct Held {
    workers: Vec<Worker>,
    session: Session,
}

impl Held {
    fn keys(&self) -> Vec<Arc<str>> {
        std::iter::once(self.session.key()).chain(self.workers.iter().map(Worker::key)).collect()
    }

    fn keep_alives(&self) -> u64 {
        let of_workers: u64 = self.workers.iter().map(Worker::keep_alives).sum();
        self.session.keep_alives() + of_workers
    }
}

impl Holder {
    fn new(mut args: Args, output: Output, server: Option<Arc<TgmPool>>) -> Self {
        let trace = args.trace.take().unwrap_or_else(|| format!("{:032x}", rand::random::<u128>()));
        Self { args, trace, output, server, since: Instant::now(), told: Told::default() }
    }

    /// Borrows everything and holds it until its time is over, a signal comes, or it ends.
    async fn hold(&mut self, pool: &Pool, signals: &mut Signals) -> Result<(), Failure> {
        let held = tokio::select! {
            held = self.borrow(pool) => held?,
            name = signals.next() => return self.show(&Event::Returning { why: name }),
        };
        self.since = Instant::now();
        self.told.keys = held.keys();
        self.show(&Event::Holding { workers: held.workers.len(), trace: &self.trace.clone() })?;

        let mut ends = JoinSet::new();
        let ended = held.session.ended();
        ends.spawn(async move { (Kind::Session, 0, ended.await) });
        for (index, worker) in held.workers.iter().enumerate() {
            let ended = worker.ended();
            ends.spawn(async move { (Kind::Worker, index + 1, ended.await) });
        }
        let over = tokio::time::sleep(self.args.length.unwrap_or(FOR_EVER));
        tokio::pin!(over);
        let mut ticks = ticks();
        loop {
            tokio::select! {
                biased;
                name = signals.next() => return self.show(&Event::Returning { why: name }),
                Some(Ok((kind, number, error))) = ends.join_next() => {
                    // A session takes its workers along: its reason is the one to tell.
                    let (kind, number, error) = match held.session.end_reason() {
                        Some(reason) => (Kind::Session, 0, reason.clone()),
                        None => (kind, number, error),
                    };
                    self.show(&Event::Ended { kind, number, reason: (&error).into() })?;
                    return Err(ended_early(kind, number, error));
                }
                () = &mut over => return self.show(&Event::Returning { why: "the time is over" }),
                _ = ticks.tick() => self.tick(&held).await?,
            }
        }
    }

    async fn borrow(&mut self, pool: &Pool) -> Result<Held, Failure> {
        let request = SessionRequest::new(&*self.args.service, &*self.args.organization)
            .api_key(&*self.args.api_key_id)
            .trace(&*self.trace);
        let session = pool.borrow(request).await;
        let session = self.told(Kind::Session, 0, session)?;
        let mut workers = Vec::new();
        let most = self.args.max_workers.unwrap_or(self.args.workers);
        for number in 1..=self.args.workers as usize {
            let worker = session.borrow_worker(&*self.args.worker_service, most).await;
            workers.push(self.told(Kind::Worker, number, worker)?);
        }
        Ok(Held { workers, session })
    }

    /// Says what came of one borrow.
    fn told<T>(
        &mut self,
        kind: Kind,
        number: usize,
        borrow: Result<T, Error>,
    ) -> Result<T, Failure> {
        let service = match kind {
            Kind::Session => self.args.service.clone(),
            Kind::Worker => self.args.worker_service.clone(),
        };
        match borrow {
            Ok(lease) => {
                let organization = &self.args.organization.clone();
                self.show(&Event::Granted { kind, service: &service, organization, number })?;
                Ok(lease)
            }
            Err(error) => {
                self.show(&Event::NotGranted { kind, reason: (&error).into() })?;
                Err(error.into())
            }
        }
    }

    /// Tells the news since the last tick.
    async fn tick(&mut self, held: &Held) -> Result<(), Failure> {
        let keys = held.keys();
        for (number, key) in keys.iter().enumerate() {
            if self.told.keys.get(number) != Some(key) {
                let kind = if number == 0 { Kind::Session } else { Kind::Worker };
                self.show(&Event::BorrowedAgain { kind, number })?;
            }
        }
        self.told.keys = keys;
        self.look_at_the_pool().await?;
        let keep_alives = held.keep_alives();
        let news = keep_alives != self.told.keep_alives;
        self.told.keep_alives = keep_alives;
        if self.output.is_live() {
            let seconds = self.since.elapsed().as_secs();
            let pool = self.told.pool.filter(|_| !self.told.silent);
            let pool =
                pool.map(|(active, max)| Bar { active, max }.to_string()).unwrap_or_default();
            let text = format!("held {seconds} s, {keep_alives} keep-alives  {pool}");
            return ignore_readers(self.output.show_live(&text));
        }
        if news {
            let held_ms = self.held_ms();
            self.show(&Event::KeptAlive { keep_alives, held_ms })?;
        }
        Ok(())
    }

    /// Tells how full the pool of the session is, as the server counts it, when that changed.
    async fn look_at_the_pool(&mut self) -> Result<(), Failure> {
        let Some(server) = self.server.clone() else { return Ok(()) };
        let (service, organization) = (self.args.service.clone(), self.args.organization.clone());
        let state = tokio::time::timeout(TICK, server.state(&service, &organization)).await;
        let message = match state {
            Ok(Ok(state)) => {
                if std::mem::take(&mut self.told.silent) {
                    self.show(&Event::Reachable)?;
                }
                let now = (state.borrowed, state.max);
                if self.told.pool.replace(now) == Some(now) || self.output.is_live() {
                    return Ok(());
                }
                let (service, organization) = (&*service, &*organization);
                let (active, max) = now;
                return self.show(&Event::Pool { service, organization, active, max });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the server does not answer".to_owned(),
        };
        if std::mem::replace(&mut self.told.silent, true) {
            return Ok(());
        }
        self.show(&Event::Unreachable { message: &message })
    }

    /// Returns everything, and says how many leases that were.
    async fn close(&mut self, pool: &Pool) -> Result<(), Failure> {
        let report = pool.close(CLOSING).await;
        let (returned, not_returned) = (report.returned, report.not_returned);
        if returned + not_returned > 0 {
            let held_ms = self.held_ms();
            self.show(&Event::Returned { returned, not_returned, held_ms })?;
        }
        if not_returned > 0 {
            return Err(Failure::Unavailable(format!(
                "{not_returned} leases could not be returned; the server frees them when their TTL ends"
            )));
        }
        Ok(())
    }

    fn held_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn show(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        let shown = self.output.clear_live().and_then(|()| self.output.show(event));
        ignore_readers(shown)
    }
}

/// The session is held for its own sake: it goes on when nobody reads about it any more.
fn ignore_readers(shown: Result<(), Failure>) -> Result<(), Failure> {
    match shown {
        Err(Failure::NobodyReads) => Ok(()),
        shown => shown,
    }
}

/// The failure of a lease that ended before it was returned.
fn ended_early(kind: Kind, number: usize, error: Error) -> Failure {
    let what = match kind {
        Kind::Session => "the session ended".to_owned(),
        Kind::Worker => format!("worker {number} ended"),
    };
    Failure::from(error).about(&what)
}

fn ticks() -> Interval {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
