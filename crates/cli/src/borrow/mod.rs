//! `borrow`: hold one session, and report what happens to it.

mod event;

use std::num::ParseIntError;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tgm_session::{Dsn, Error, Pool, Registry, Session, SessionRequest, Worker};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};

use crate::bar::Bar;
use crate::borrow::event::{Event, Kind};
use crate::failure::Failure;
use crate::output::Output;
use crate::remote::Remote;
use crate::runtime;
use crate::signals::Signals;

const ABOUT: &str = "\
Everything is returned before it exits, on Ctrl-C too; a second Ctrl-C leaves
at once, and the server frees the slots one TTL later.

  tgm-session borrow 'tgm://127.0.0.1:9010?plaintext=true' \\
        --organization acme --workers 4
  tgm-session borrow 'tgm://HOST?indexer-api-key=$KEY' --organization acme \\
        --for 1m
  tgm-session borrow 'local://?max_sessions=1' --organization acme --for 5s

$VAR and ${VAR} in a URL are replaced from the environment: single quotes keep
keys out of sight.

Exit codes: 0 returned, 2 a wrong flag or URL, 3 refused or revoked, 4 the
server is unavailable.";

/// How long the returns at the end may take.
const CLOSING: Duration = Duration::from_secs(10);
/// Longer than any process lives.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How often the screen and the server's count are refreshed.
const TICK: Duration = Duration::from_secs(1);
/// The most workers of one session: this command is for looking at a server, not for loading it.
const MOST_WORKERS: u32 = 10_000;

/// Hold a session, and workers under it, until a time or Ctrl-C; show what happens.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The session URL: tgm://HOST:PORT?PARAMETERS, or local://.
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
    let runtime = runtime::current_thread()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::take_with_hangup()?;
        let (pool, remote) = connect(&args.url).await?;
        let mut holder = Holder::new(args, output, remote);
        let outcome = holder.hold(&pool, &mut signals).await;
        // Everything is returned, whether that worked or not.
        let closed = tokio::select! {
            closed = holder.close(&pool) => closed,
            name = signals.next() => Err(Failure::Failed(format!(
                "left at once on a second signal ({name}); what was held ends with its TTL"
            ))),
        };
        outcome.and(closed)
    });
    // Returns that are still being retried are given up.
    runtime.shutdown_background();
    outcome
}

/// Makes the pool of `url`, and with `tgm://` the client that asks its server.
async fn connect(url: &str) -> Result<(Pool, Option<Remote>), Failure> {
    let dsn = Dsn::parse(url)?;
    if dsn.scheme() == "tgm" {
        let remote = Remote::new(&dsn)?;
        return Ok((Pool::new(remote.pool.clone()), Some(remote)));
    }
    Ok((Registry::default().open(dsn).await?, None))
}

/// Holds the session.
struct Holder {
    args: Args,
    output: Output,
    remote: Option<Remote>,
    since: Instant,
    reported: Reported,
    /// Kept until the pool is closed: a guard that is dropped returns its lease with the minimal
    /// life of its service, and a close returns it at once.
    session: Option<Session>,
    workers: Vec<Worker>,
}

/// What was reported last. Only changes are reported.
#[derive(Default)]
struct Reported {
    /// The active leases of the pool, and its limit.
    pool: Option<(u64, Option<u64>)>,
    /// Whether the server does not answer.
    is_unreachable: bool,
    keep_alives: u64,
    keys: Vec<Arc<str>>,
}

impl Holder {
    fn new(args: Args, output: Output, remote: Option<Remote>) -> Self {
        Self {
            args,
            output,
            remote,
            since: Instant::now(),
            reported: Reported::default(),
            session: None,
            workers: Vec::new(),
        }
    }

    /// Borrows everything and holds it until its time is over, a signal comes, or it ends.
    async fn hold(&mut self, pool: &Pool, signals: &mut Signals) -> Result<(), Failure> {
        tokio::select! {
            borrowed = self.borrow(pool) => borrowed?,
            name = signals.next() => return self.show(&Event::Returning { why: name }),
        }
        self.since = Instant::now();
        self.reported.keys = self.keys();
        let trace = self.session.as_ref().map(|session| session.ids().trace.clone());
        let trace = &trace.unwrap_or_default();
        self.show(&Event::Holding { workers: self.workers.len(), trace })?;
        let mut ends = self.ends();
        let over = tokio::time::sleep(self.args.length.unwrap_or(FOREVER));
        tokio::pin!(over);
        let mut ticks = ticks();
        loop {
            tokio::select! {
                biased;
                name = signals.next() => return self.show(&Event::Returning { why: name }),
                Some(Ok((kind, number, error))) = ends.join_next() => {
                    return self.report_end(kind, number, error);
                }
                () = &mut over => return self.show(&Event::Returning { why: "the time is over" }),
                _ = ticks.tick() => self.tick().await?,
            }
        }
    }

    /// Borrows everything, one after another. What it has is kept when it is dropped.
    async fn borrow(&mut self, pool: &Pool) -> Result<(), Failure> {
        let request = SessionRequest::new(&*self.args.service, &*self.args.organization)
            .api_key(&*self.args.api_key_id)
            .trace(self.args.trace.as_deref().unwrap_or_default());
        ignore_closed_output(self.output.show_live(&"asking for a session…"))?;
        let session = pool.borrow(request).await;
        self.session = Some(self.report_borrow(Kind::Session, 0, session)?);
        let most = self.args.max_workers.unwrap_or(self.args.workers);
        for number in 1..=self.args.workers as usize {
            let Some(session) = &self.session else { break };
            let worker = session.borrow_worker(&*self.args.worker_service, most).await;
            let worker = self.report_borrow(Kind::Worker, number, worker)?;
            self.workers.push(worker);
        }
        Ok(())
    }

    /// Tasks that wait, each for the end of one lease.
    fn ends(&self) -> JoinSet<(Kind, usize, Error)> {
        let mut ends = JoinSet::new();
        if let Some(session) = &self.session {
            let ended = session.ended();
            ends.spawn(async move { (Kind::Session, 0, ended.await) });
        }
        for (index, worker) in self.workers.iter().enumerate() {
            let ended = worker.ended();
            ends.spawn(async move { (Kind::Worker, index + 1, ended.await) });
        }
        ends
    }

    /// Reports that a lease ended before its time.
    fn report_end(&mut self, kind: Kind, number: usize, error: Error) -> Result<(), Failure> {
        // The end of a session ends its workers: its reason is the one to report.
        let reason = self.session.as_ref().and_then(|session| session.end_reason()).cloned();
        let (kind, number, error) = match reason {
            Some(reason) => (Kind::Session, 0, reason),
            None => (kind, number, error),
        };
        self.show(&Event::Ended { kind, number, reason: (&error).into() })?;
        let what = match kind {
            Kind::Session => "the session ended".to_owned(),
            Kind::Worker => format!("worker {number} ended"),
        };
        Err(self.failure(error).about(&what))
    }

    fn keys(&self) -> Vec<Arc<str>> {
        let session = self.session.iter().map(|session| session.key());
        session.chain(self.workers.iter().map(|worker| worker.key())).collect()
    }

    fn keep_alives(&self) -> u64 {
        let session = self.session.iter().map(|session| session.keep_alives());
        session.chain(self.workers.iter().map(|worker| worker.keep_alives())).sum()
    }

    /// Reports the result of one borrow.
    fn report_borrow<T>(
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
                let reason = (&error).into();
                let failure = self.failure(error);
                let refused = matches!(failure, Failure::Refused(_));
                self.show(&match refused {
                    true => Event::Refused { kind, reason },
                    false => Event::Failed { kind, reason },
                })?;
                Err(failure)
            }
        }
    }

    /// Reports what has changed since the last tick.
    async fn tick(&mut self) -> Result<(), Failure> {
        let keys = self.keys();
        for (number, key) in keys.iter().enumerate() {
            if self.reported.keys.get(number) != Some(key) {
                let kind = if number == 0 { Kind::Session } else { Kind::Worker };
                self.show(&Event::BorrowedAgain { kind, number })?;
            }
        }
        self.reported.keys = keys;
        self.report_pool().await?;
        let keep_alives = self.keep_alives();
        let news = keep_alives != self.reported.keep_alives;
        self.reported.keep_alives = keep_alives;
        if self.output.is_live() {
            let seconds = self.since.elapsed().as_secs();
            let pool = self.reported.pool.filter(|_| !self.reported.is_unreachable);
            let pool =
                pool.map(|(active, max)| Bar { active, max }.to_string()).unwrap_or_default();
            let text = format!("held {seconds} s, {keep_alives} keep-alives  {pool}");
            return ignore_closed_output(self.output.show_live(&text));
        }
        if news {
            let held_ms = self.held_ms();
            self.show(&Event::KeptAlive { keep_alives, held_ms })?;
        }
        Ok(())
    }

    /// Reports how full the pool of the session is, as the server counts it, when that has changed.
    async fn report_pool(&mut self) -> Result<(), Failure> {
        let Some(server) = self.remote.as_ref().map(|remote| remote.pool.clone()) else {
            return Ok(());
        };
        let (service, organization) = (self.args.service.clone(), self.args.organization.clone());
        let state = tokio::time::timeout(TICK / 2, server.state(&service, &organization)).await;
        let message = match state {
            Ok(Ok(state)) => {
                if std::mem::take(&mut self.reported.is_unreachable) {
                    self.show(&Event::Reachable)?;
                }
                let now = (state.borrowed, state.max);
                if self.reported.pool.replace(now) == Some(now) || self.output.is_live() {
                    return Ok(());
                }
                let (service, organization) = (&*service, &*organization);
                let (active, max) = now;
                return self.show(&Event::Pool { service, organization, active, max });
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the server does not answer".to_owned(),
        };
        if std::mem::replace(&mut self.reported.is_unreachable, true) {
            return Ok(());
        }
        self.show(&Event::Unreachable { message: &message })
    }

    /// Returns everything, and reports how many leases that were.
    async fn close(&mut self, pool: &Pool) -> Result<(), Failure> {
        ignore_closed_output(self.output.show_live(&"returning everything…"))?;
        let report = pool.close(CLOSING).await;
        ignore_closed_output(self.output.clear_live())?;
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

    fn failure(&self, error: Error) -> Failure {
        match &self.remote {
            Some(remote) => remote.failure(error),
            None => error.into(),
        }
    }

    fn held_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn show(&mut self, event: &Event<'_>) -> Result<(), Failure> {
        ignore_closed_output(self.output.show(event))
    }
}

/// A closed output does not end the command: the session is still held.
fn ignore_closed_output(shown: Result<(), Failure>) -> Result<(), Failure> {
    match shown {
        Err(Failure::OutputClosed) => Ok(()),
        shown => shown,
    }
}

fn ticks() -> Interval {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
