use std::collections::HashMap;
use std::time::Duration;

use futures_util::FutureExt;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::returns::MOST_STRAYS;
use super::*;
use crate::held::{Release, Released};

mod batches;
mod link;
mod model;
mod races;
mod returns;
mod schedule;
mod stream;
mod tries;

const TTL: Duration = Duration::from_secs(60);
/// How long a lease counts as live after the last success: 95 % of its TTL.
const BELIEF: Duration = Duration::from_secs(57);
const DELAY: Duration = Duration::from_secs(20);

const RULES: Rules =
    Rules { delay: DELAY, minimal_life: None, most_sessions: None, fail_open: false };

/// A core and a clock that only the test advances.
struct Bench {
    core: Core,
    start: Instant,
    now: Instant,
    grants: u64,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        let now = Instant::now();
        let core = Core::new(rules, StdRng::seed_from_u64(7), now);
        Self { core, start: now, now, grants: 0 }
    }

    fn grant(&mut self, name: &str) -> Grant {
        self.grants += 1;
        Grant { key: format!("{name}#{}", self.grants), ttl: TTL, minimal_life: None }
    }

    /// Begins a borrow of a session.
    fn begin(&mut self) -> Result<Asked, Error> {
        self.core.begin_session(&ids(), self.now)
    }

    fn session(&mut self, on_error: Option<OnError>) -> Arc<Lease> {
        let asked = self.begin().unwrap();
        let grant = self.grant("session");
        self.core.handle_grant(&asked, on_error, grant, self.now, self.now).unwrap()
    }

    fn worker(&mut self, session: &Lease) -> Arc<Lease> {
        let session = session.number();
        let asked = self.core.begin_worker(session, &"t2w".into(), 9).unwrap();
        let grant = self.grant("worker");
        self.core.handle_grant(&asked, None, grant, self.now, self.now).unwrap()
    }

    /// Takes the next call that is due. Delivers notices before it, and ignores streams.
    fn poll_call(&mut self) -> Option<Call> {
        loop {
            match self.core.poll_output(self.now)? {
                Output::Call(call) => return Some(call),
                Output::Notice(notice) => notice.deliver(),
                Output::OpenStream | Output::CloseStream => {}
                Output::Batch(batch) => panic!("a batch instead of calls: {batch:?}"),
            }
        }
    }

    /// Moves the time to the next call and returns it; `None` when nothing is left to do.
    fn call(&mut self) -> Option<Call> {
        loop {
            if let Some(call) = self.poll_call() {
                return Some(call);
            }
            self.now = self.now.max(self.core.poll_timeout(self.now)?);
        }
    }

    /// Moves the time to the next keep-alive, which has to be one of `number`.
    fn beat(&mut self, number: u64) {
        match self.call() {
            Some(Call::KeepAlive { number: due, .. }) if due == number => {}
            call => panic!("not a keep-alive of {number}: {call:?}"),
        }
    }

    fn answer(&mut self, number: u64, answer: KeepAliveAnswer) {
        self.core.handle_keep_alive(number, answer, self.now, self.now);
        self.tell();
    }

    /// Answers a borrow of the task and returns the new key.
    fn regrant(&mut self, call: Option<Call>) -> String {
        let Some(Call::Borrow { asked, .. }) = call else { panic!("not a borrow: {call:?}") };
        let grant = self.grant("again");
        let key = grant.key.clone();
        let answer = BorrowAnswer::Granted(grant);
        self.core.handle_borrow(asked.number, answer, self.now, self.now);
        self.tell();
        key
    }

    fn release(&mut self, lease: &Lease) -> Release {
        self.core.release(lease.number(), None, self.now)
    }

    /// Takes the next call, which has to be a return. Answers it and returns its target.
    fn take_back(&mut self) -> Target {
        match self.call() {
            Some(Call::Return { number, target, .. }) => {
                let outcome = Ok(Released::Returned);
                let answer = ReturnAnswer { outcome, again: true, answered: true };
                self.core.handle_return(number, answer, self.now);
                self.tell();
                target
            }
            call => panic!("not a return: {call:?}"),
        }
    }

    fn tell(&mut self) {
        std::iter::from_fn(|| self.core.poll_notice()).for_each(Notice::deliver);
    }

    fn passed(&self) -> Duration {
        self.now - self.start
    }
}

fn ids() -> Ids {
    Ids {
        service: "t1r".into(),
        organization: "acme".into(),
        api_key: "key-1".into(),
        trace: "t".into(),
    }
}

/// The most workers that a borrow asks for; 0 for a session.
fn most_workers(asked: &Asked) -> i64 {
    asked.worker.map_or(0, |worker| worker.most)
}

fn key(key: &str) -> Target {
    Target::Key(key.into())
}

fn denied() -> Error {
    Error::PermissionDenied { message: "the organization is disabled".into() }
}

fn away() -> Error {
    Error::unavailable("connection refused")
}

/// Returns an `on_error` callback and the list of the errors that it is called with.
fn recorded() -> (Arc<parking_lot::Mutex<Vec<Error>>>, Option<OnError>) {
    let calls: Arc<parking_lot::Mutex<Vec<Error>>> = Arc::default();
    let record = calls.clone();
    (calls, Some(Box::new(move |reason| record.lock().push(reason))))
}

#[test]
fn a_revoked_keep_alive_ends_the_session_and_its_workers_once_and_borrows_nothing() {
    let mut bench = Bench::new(RULES);
    let (calls, on_error) = recorded();
    let session = bench.session(on_error);
    let worker = bench.worker(&session);
    let Some(Call::KeepAlive { number, .. }) = bench.call() else { panic!("no keep-alive") };
    bench.answer(number, KeepAliveAnswer::Revoked(denied()));
    assert_eq!(*calls.lock(), [denied()]);
    assert_eq!((session.end_reason(), worker.end_reason()), (Some(&denied()), Some(&denied())));
    // Nothing more is due for the session: no keep-alive, no borrow.
    assert!(bench.call().is_none());
    let refused = bench.core.begin_worker(session.number(), &"t2w".into(), 9).unwrap_err();
    assert_eq!(refused, denied());
    // The session and its worker are returned when the guard of the session is released.
    bench.release(&session).now_or_never();
    assert_eq!(bench.take_back(), key("worker#2"));
    assert_eq!(bench.take_back(), key("session#1"));
    assert_eq!(calls.lock().len(), 1);
}

#[test]
fn a_denied_keep_alive_without_a_callback_ends_the_session_too() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    let spent = Error::QuotaExceeded { message: "egress_bytes 10/10".into() };
    bench.answer(session.number(), KeepAliveAnswer::Revoked(spent.clone()));
    assert_eq!(session.end_reason(), Some(&spent));
    assert!(bench.call().is_none());
}

#[test]
fn a_forgotten_session_is_borrowed_again_for_the_same_ids_under_the_same_handle() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    bench.answer(session.number(), KeepAliveAnswer::Forgotten);
    let call = bench.call();
    let Some(Call::Borrow { asked, .. }) = &call else { panic!("not a borrow: {call:?}") };
    assert_eq!((&*asked.ids.service, &*asked.ids.organization), ("t1r", "acme"));
    assert_eq!((&*asked.ids.api_key, &*asked.ids.trace, most_workers(asked)), ("key-1", "t", 0));
    let new = bench.regrant(call);
    assert_eq!((&*session.key(), session.end_reason()), (&*new, None));
    bench.beat(session.number());
    bench.answer(session.number(), KeepAliveAnswer::Extended(None));
    bench.release(&session).now_or_never();
    assert_eq!(bench.take_back(), key(&new));
}

#[test]
fn a_forgotten_worker_waits_until_its_session_is_known_to_live() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let worker = bench.worker(&session);
    // The worker learns of the restart first, whichever lease has the earlier random time.
    while let Some(Call::KeepAlive { number, .. }) = bench.call() {
        if number == worker.number() {
            break;
        }
        bench.answer(number, KeepAliveAnswer::Extended(None));
    }
    bench.now += Duration::from_millis(1);
    bench.answer(worker.number(), KeepAliveAnswer::Forgotten);
    // A keep-alive of its session is due at once, before its scheduled time.
    let asked_at = bench.now;
    bench.beat(session.number());
    assert_eq!(bench.now, asked_at);
    bench.answer(session.number(), KeepAliveAnswer::Forgotten);
    let sessions = bench.call();
    assert!(
        matches!(&sessions, Some(Call::Borrow { asked, .. }) if asked.number == session.number())
    );
    // Until the borrow of the session is answered, the worker is not borrowed.
    assert!(bench.poll_call().is_none());
    bench.regrant(sessions);
    let workers = bench.call();
    assert!(matches!(
        &workers,
        Some(Call::Borrow { asked, .. }) if asked.number == worker.number() && most_workers(asked) == 9
    ));
    bench.regrant(workers);
    assert_eq!((session.end_reason(), worker.end_reason()), (None, None));
}

#[test]
fn a_session_that_is_refused_when_borrowed_again_is_lost_with_its_workers() {
    let mut bench = Bench::new(RULES);
    let (calls, on_error) = recorded();
    let session = bench.session(on_error);
    let worker = bench.worker(&session);
    while let Some(Call::KeepAlive { number, .. }) = bench.call() {
        bench.answer(number, KeepAliveAnswer::Forgotten);
        if number == session.number() {
            break;
        }
    }
    let call = bench.call();
    assert!(matches!(&call, Some(Call::Borrow { asked, .. }) if asked.number == session.number()));
    let full =
        Error::ConcurrentStreamLimitExceeded { active: 3, max: 3, scope: Scope::Organization };
    let answer = BorrowAnswer::Refused { error: full.clone(), key: None };
    bench.core.handle_borrow(session.number(), answer, bench.now, bench.now);
    bench.tell();
    assert_eq!(*calls.lock(), [full.clone().lost()]);
    assert_eq!(worker.end_reason(), Some(&full.lost()));
}

#[test]
fn a_worker_that_is_refused_when_borrowed_again_is_lost_alone() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let worker = bench.worker(&session);
    loop {
        match bench.call() {
            Some(Call::KeepAlive { number, .. }) if number == worker.number() => {
                bench.answer(number, KeepAliveAnswer::Forgotten);
            }
            Some(Call::KeepAlive { number, .. }) => {
                bench.answer(number, KeepAliveAnswer::Extended(None));
            }
            Some(Call::Borrow { asked, .. }) => {
                let number = asked.number;
                assert_eq!(number, worker.number());
                let full = Error::WorkersLimitExceeded { active: 9, max: 9, scope: Scope::Trace };
                let answer = BorrowAnswer::Refused { error: full.clone(), key: None };
                bench.core.handle_borrow(number, answer, bench.now, bench.now);
                bench.tell();
                assert_eq!(worker.end_reason(), Some(&full.lost()));
                break;
            }
            call => panic!("{call:?}"),
        }
    }
    assert_eq!(session.end_reason(), None);
    // The server holds no lease for the worker, so there is nothing to return.
    assert_eq!(bench.release(&worker).now_or_never(), Some(Ok(Released::Missing)));
}

#[test]
fn nothing_is_borrowed_again_once_the_borrow_was_denied() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    bench.answer(session.number(), KeepAliveAnswer::Forgotten);
    assert!(matches!(bench.call(), Some(Call::Borrow { .. })));
    let answer = BorrowAnswer::Refused { error: denied(), key: None };
    bench.core.handle_borrow(session.number(), answer, bench.now, bench.now);
    bench.tell();
    assert_eq!(session.end_reason(), Some(&denied()));
    assert!(bench.call().is_none());
}

#[test]
fn a_server_that_is_away_is_asked_every_second_and_the_session_is_lost_before_its_ttl_is_over() {
    let mut bench = Bench::new(RULES);
    let (calls, on_error) = recorded();
    let session = bench.session(on_error);
    bench.beat(session.number());
    let first = bench.now;
    let mut tries = 1;
    bench.answer(session.number(), KeepAliveAnswer::Fault(away()));
    while let Some(call) = bench.call() {
        assert!(matches!(call, Call::KeepAlive { .. }));
        tries += 1;
        bench.answer(session.number(), KeepAliveAnswer::Fault(away()));
    }
    assert_eq!(bench.passed(), BELIEF);
    let seconds = (bench.now - first).as_secs();
    assert!((seconds - 3..=seconds + 3).contains(&tries), "{tries} tries in {seconds} s");
    assert_eq!(*calls.lock(), [away().lost()]);
}

#[test]
fn a_keep_alive_that_succeeds_clears_the_failures_before_it() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    for _ in 0..100 {
        bench.beat(session.number());
        bench.answer(session.number(), KeepAliveAnswer::Fault(away()));
        bench.beat(session.number());
        bench.answer(session.number(), KeepAliveAnswer::Extended(None));
    }
    assert!(bench.passed() > TTL);
    assert_eq!(session.end_reason(), None);
}
