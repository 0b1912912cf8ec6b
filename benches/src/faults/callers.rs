//! The callers, in a process of their own: each borrows, keeps alive and returns in a loop, and every
//! step is a line on standard output.

use std::cell::Cell;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use benches::process::now;
use rand::RngExt as _;
use tgm_session::{Error, Guard, Pool, Released, Session, SessionRequest, Worker};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;

use crate::history::{Event, What};
use crate::policy::{ATTACHED, JOBS, SESSIONS, WORKERS, organization};

/// What the callers are started with.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The servers, `HOST:PORT`
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// The authorities of their certificates. Without them there is no TLS
    #[arg(long)]
    authorities: Option<PathBuf>,
    /// How many callers there are
    #[arg(long)]
    callers: u32,
    /// How many sessions are only held, beside those of the callers
    #[arg(long)]
    attached: u32,
}

/// Sessions of one pool that only holds them.
const HELD_BY_ONE: u32 = 100;

/// The longest pause between two steps of a caller, in milliseconds.
const PAUSE: u64 = 120;

/// The most steps with one session.
const STEPS: u32 = 100;

/// Writes events on standard output.
#[derive(Clone)]
struct Recorder {
    events: mpsc::Sender<Event>,
    next: Rc<Cell<u64>>,
    caller: u32,
}

impl Recorder {
    /// Records at once, so events are in the order in which they happened: there is one thread.
    fn record(&self, borrow: u64, what: What) {
        // Nobody reads once the process ends.
        let _ = self.events.send(Event { at: now(), caller: self.caller, borrow, what });
    }

    /// Records the intent to borrow.
    fn ask(&self, service: &str, organization: &str, under: Option<u64>) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        let (service, organization) = (service.to_owned(), organization.to_owned());
        self.record(number, What::Asks { service, organization, under });
        number
    }

    /// Records the answer to a borrow.
    fn answer(&self, number: u64, key: Result<&Guard, &Error>) {
        let what = match key {
            Ok(guard) => What::Granted { key: guard.key().to_string() },
            Err(
                Error::ConcurrentStreamLimitExceeded { .. } | Error::WorkersLimitExceeded { .. },
            ) => What::Denied,
            Err(error) => What::Failed { kind: kind(error).to_owned(), message: error.to_string() },
        };
        self.record(number, what);
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Unavailable { .. } => "unavailable",
        Error::SessionNotFound => "session not found",
        Error::Lost { .. } => "lost",
        Error::Closed => "closed",
        _ => "other",
    }
}

/// A lease that a caller holds.
struct Held<G> {
    guard: G,
    number: u64,
    key: std::sync::Arc<str>,
    kept: u64,
    /// Records the end of the lease when the library ends it.
    watch: JoinHandle<()>,
}

impl<G: std::ops::Deref<Target = Guard>> Held<G> {
    fn new(recorder: &Recorder, number: u64, guard: G) -> Self {
        recorder.answer(number, Ok(&guard));
        let (ended, recorder) = (guard.ended(), recorder.clone());
        let watch = spawn_local(async move {
            let reason = ended.await.to_string();
            recorder.record(number, What::Ended { reason });
        });
        Self { key: guard.key(), kept: guard.keep_alives(), guard, number, watch }
    }

    /// Records what the library did with the lease. Returns whether it lives.
    fn look(&mut self, recorder: &Recorder) -> bool {
        let (key, kept) = (self.guard.key(), self.guard.keep_alives());
        if key != self.key {
            recorder.record(self.number, What::BorrowedAgain { key: key.to_string() });
            self.key = key;
        }
        if kept != self.kept {
            recorder.record(self.number, What::Kept { times: kept });
            self.kept = kept;
        }
        self.guard.end_reason().is_none()
    }

    /// Returns the lease with `release`, unless it has ended.
    async fn give_back(
        mut self,
        recorder: &Recorder,
        release: impl FnOnce(G) -> tgm_session::Release,
    ) {
        if !self.look(recorder) {
            // The watch records the end.
            return;
        }
        self.watch.abort();
        recorder.record(self.number, What::Returns);
        recorder.record(
            self.number,
            match release(self.guard).await {
                Ok(outcome) => What::Returned { missing: outcome == Released::Missing },
                Err(error) => What::NotReturned { message: error.to_string() },
            },
        );
    }
}

/// Runs until the process is killed.
///
/// # Errors
///
/// A pool cannot be made, or nobody reads the events.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (events, recorded) = mpsc::channel::<Event>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::spawn(move || {
        // The events are read until the reader is gone, and then the callers are not needed.
        let code = write(&recorded).map_or(1, |()| 0);
        std::process::exit(code);
    });
    let callers = LocalSet::new();
    let options = options.clone();
    let recorder = Recorder { events, next: Rc::new(Cell::new(1)), caller: 0 };
    callers.spawn_local(async move {
        if let Err(error) = start(&options, &recorder).await {
            eprintln!("error: {error:#}");
        }
    });
    runtime.block_on(callers);
    Ok(())
}

/// Writes events as lines, with one flush for those that wait.
fn write(recorded: &mpsc::Receiver<Event>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(std::io::stdout());
    while let Ok(first) = recorded.recv() {
        for event in std::iter::once(first).chain(recorded.try_iter()) {
            serde_json::to_writer(&mut out, &event)?;
            out.write_all(b"\n")?;
        }
        out.flush()?;
    }
    Ok(())
}

/// A pool that prefers the server of this number.
async fn pool(options: &Options, first: u32) -> anyhow::Result<Pool> {
    let mut servers = options.servers.clone();
    let first = first as usize % servers.len();
    servers.rotate_left(first);
    let also = servers[1..].join(",");
    let tls = match &options.authorities {
        None => "plaintext=true".to_owned(),
        Some(file) => format!("ca-file={}", file.display()),
    };
    let url = format!("tgm://{}?{tls}&also={also}", servers[0]);
    Ok(tgm_session::connect(&url).await?)
}

async fn start(options: &Options, recorder: &Recorder) -> anyhow::Result<()> {
    for number in 0..options.attached.div_ceil(HELD_BY_ONE) {
        let sessions = HELD_BY_ONE.min(options.attached - number * HELD_BY_ONE);
        let recorder = Recorder { caller: 1_000 + number, ..recorder.clone() };
        spawn_local(hold(pool(options, number).await?, sessions, recorder));
    }
    for caller in 0..options.callers {
        let recorder = Recorder { caller, ..recorder.clone() };
        spawn_local(call(options.clone(), recorder));
    }
    Ok(())
}

/// Holds so many sessions.
async fn hold(pool: Pool, sessions: u32, recorder: Recorder) {
    let mut held = Vec::new();
    loop {
        while held.len() < sessions as usize {
            let number = recorder.ask(ATTACHED, "attached", None);
            match pool.borrow(SessionRequest::new(ATTACHED, "attached")).await {
                Ok(session) => held.push(Held::new(&recorder, number, session)),
                Err(error) => {
                    recorder.answer(number, Err(&error));
                    pause().await;
                }
            }
        }
        held.retain_mut(|session| session.look(&recorder));
        sleep(Duration::from_millis(500)).await;
    }
}

async fn pause() {
    let milliseconds = rand::rng().random_range(PAUSE / 4..PAUSE);
    sleep(Duration::from_millis(milliseconds)).await;
}

/// Borrows a session, works with it for a while, returns it, and begins again with a new pool. A pool stays
/// at the server that answered last. New ones keep the callers at all servers: if all were at one, they would
/// need four seconds to find out that it is silent, whoever leads by then.
async fn call(options: Options, recorder: Recorder) {
    let organization = organization(recorder.caller);
    loop {
        pause().await;
        let pool = match pool(&options, recorder.caller).await {
            Ok(pool) => pool,
            Err(error) => {
                eprintln!("error: {error:#}");
                continue;
            }
        };
        let number = recorder.ask(SESSIONS, &organization, None);
        match pool.borrow(SessionRequest::new(SESSIONS, &*organization)).await {
            Ok(session) => work(Held::new(&recorder, number, session), &recorder).await,
            Err(error) => recorder.answer(number, Err(&error)),
        }
    }
}

async fn work(mut session: Held<Session>, recorder: &Recorder) {
    let organization = organization(recorder.caller);
    let mut workers: Vec<Held<Worker>> = Vec::new();
    for _ in 0..rand::rng().random_range(STEPS / 10..STEPS) {
        pause().await;
        workers.retain_mut(|worker| worker.look(recorder));
        if !session.look(recorder) {
            return;
        }
        if workers.len() < WORKERS as usize && rand::rng().random_bool(0.6) {
            let number = recorder.ask(JOBS, &organization, Some(session.number));
            match session.guard.borrow_worker(JOBS, WORKERS).await {
                Ok(worker) => workers.push(Held::new(recorder, number, worker)),
                Err(error) => recorder.answer(number, Err(&error)),
            }
        } else if let Some(worker) = workers.pop() {
            worker.give_back(recorder, Worker::release).await;
        }
    }
    for worker in workers {
        worker.give_back(recorder, Worker::release).await;
    }
    session.give_back(recorder, Session::release).await;
}
