use futures_util::FutureExt;
use rand::SeedableRng;

use super::*;
use crate::tgm::answer::{BorrowAnswer, KeepAliveAnswer, ReturnAnswer};

mod model;
mod races;

const TTL: Duration = Duration::from_secs(60);
const DELAY: Duration = Duration::from_secs(20);

const RULES: Rules = Rules { delay: DELAY, minimal_life: None, most_sessions: None };

/// A keeper and the time, which only the test moves.
struct Bench {
    keeper: Keeper,
    start: Instant,
    now: Instant,
    grants: u64,
}

impl Bench {
    fn new(rules: Rules) -> Self {
        let now = Instant::now();
        let keeper = Keeper::new(rules, StdRng::seed_from_u64(7));
        Self { keeper, start: now, now, grants: 0 }
    }

    fn grant(&mut self, name: &str) -> Grant {
        self.grants += 1;
        Grant { key: format!("{name}#{}", self.grants), ttl: TTL, minimal_life: None }
    }

    fn session(&mut self, on_error: Option<OnError>) -> Arc<Lease> {
        let asked = asked();
        self.keeper.begin_session(&asked).unwrap();
        let grant = self.grant("session");
        self.keeper.granted(&asked, None, on_error, grant, self.now, self.now).unwrap()
    }

    fn worker(&mut self, session: &Lease) -> Arc<Lease> {
        let session = session.number();
        let asked = self.keeper.begin_worker(session, &"t2w".into(), 9).unwrap();
        let grant = self.grant("worker");
        self.keeper.granted(&asked, Some(session), None, grant, self.now, self.now).unwrap()
    }

    /// Moves the time to the next call and returns it; `None` when nothing is left to do.
    fn call(&mut self) -> Option<Call> {
        loop {
            if let Some(call) = self.keeper.next_call(self.now) {
                self.tell();
                return Some(call);
            }
            self.tell();
            self.now = self.now.max(self.keeper.next_time(self.now)?);
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
        self.keeper.kept_alive(number, answer, self.now, self.now);
        self.tell();
    }

    /// Answers a borrow of the task and returns the new key.
    fn regrant(&mut self, call: Option<Call>) -> String {
        let Some(Call::Borrow { number, .. }) = call else { panic!("not a borrow: {call:?}") };
        let grant = self.grant("again");
        let key = grant.key.clone();
        let answer = BorrowAnswer::Granted(grant);
        self.keeper.borrowed_again(number, answer, self.now, self.now);
        self.tell();
        key
    }

    fn release(&mut self, lease: &Lease) -> Release {
        self.keeper.release(lease.number(), None, self.now)
    }

    /// Takes the next call, which has to be a return; answers it and returns what it gave back.
    fn take_back(&mut self) -> Target {
        match self.call() {
            Some(Call::Return { number, target, .. }) => {
                let outcome = Ok(Released::Returned);
                let answer = ReturnAnswer { outcome, again: true, answered: true };
                self.keeper.returned(number, answer, self.now);
                self.tell();
                target
            }
            call => panic!("not a return: {call:?}"),
        }
    }

    fn tell(&mut self) {
        self.keeper.take_news().tell();
    }

    fn passed(&self) -> Duration {
        self.now - self.start
    }
}

fn asked() -> Asked {
    Asked {
        service: "t1r".into(),
        organization: "acme".into(),
        api_key: "key-1".into(),
        trace: "t".into(),
        max_workers: 0,
    }
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

/// Keeps what an `on_error` callback was called with.
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
    // Nothing more is due for it: no keep-alive, no borrow.
    assert!(bench.call().is_none());
    let refused = bench.keeper.begin_worker(session.number(), &"t2w".into(), 9).unwrap_err();
    assert_eq!(refused, denied());
    // Its slots go back when the guards go.
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
    assert_eq!((&*asked.service, &*asked.organization), ("t1r", "acme"));
    assert_eq!((&*asked.api_key, &*asked.trace, asked.max_workers), ("key-1", "t", 0));
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
    // The worker hears of the restart first, whatever the dice say about whose beat is first.
    while let Some(Call::KeepAlive { number, .. }) = bench.call() {
        if number == worker.number() {
            break;
        }
        bench.answer(number, KeepAliveAnswer::Extended(None));
    }
    bench.now += Duration::from_millis(1);
    bench.answer(worker.number(), KeepAliveAnswer::Forgotten);
    // Its session is asked at once, and not by the clock.
    let asked_at = bench.now;
    bench.beat(session.number());
    assert_eq!(bench.now, asked_at);
    bench.answer(session.number(), KeepAliveAnswer::Forgotten);
    let sessions = bench.call();
    assert!(matches!(&sessions, Some(Call::Borrow { number, .. }) if *number == session.number()));
    // While nobody knows about the session, the worker is not borrowed.
    assert!(bench.keeper.next_call(bench.now).is_none());
    bench.regrant(sessions);
    let workers = bench.call();
    assert!(matches!(
        &workers,
        Some(Call::Borrow { number, asked, .. }) if *number == worker.number() && asked.max_workers == 9
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
    assert!(matches!(&call, Some(Call::Borrow { number, .. }) if *number == session.number()));
    let full =
        Error::ConcurrentStreamLimitExceeded { active: 3, max: 3, scope: Scope::Organization };
    let answer = BorrowAnswer::Refused(full.clone());
    bench.keeper.borrowed_again(session.number(), answer, bench.now, bench.now);
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
            Some(Call::Borrow { number, .. }) => {
                assert_eq!(number, worker.number());
                let full = Error::WorkersLimitExceeded { active: 9, max: 9, scope: Scope::Trace };
                let answer = BorrowAnswer::Refused(full.clone());
                bench.keeper.borrowed_again(number, answer, bench.now, bench.now);
                bench.tell();
                assert_eq!(worker.end_reason(), Some(&full.lost()));
                break;
            }
            call => panic!("{call:?}"),
        }
    }
    assert_eq!(session.end_reason(), None);
    // The server holds nothing for it, so there is nothing to return.
    assert_eq!(bench.release(&worker).now_or_never(), Some(Ok(Released::Missing)));
}

#[test]
fn nothing_is_borrowed_again_once_the_borrow_was_denied() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    bench.answer(session.number(), KeepAliveAnswer::Forgotten);
    assert!(matches!(bench.call(), Some(Call::Borrow { .. })));
    let answer = BorrowAnswer::Refused(denied());
    bench.keeper.borrowed_again(session.number(), answer, bench.now, bench.now);
    bench.tell();
    assert_eq!(session.end_reason(), Some(&denied()));
    assert!(bench.call().is_none());
}

#[test]
fn a_server_that_is_away_is_asked_every_second_and_the_session_is_lost_after_one_ttl() {
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
    assert_eq!(bench.passed(), TTL);
    let seconds = (bench.now - first).as_secs();
    assert!((seconds - 3..=seconds + 3).contains(&tries), "{tries} tries in {seconds} s");
    assert_eq!(*calls.lock(), [away().lost()]);
}

#[test]
fn a_keep_alive_that_works_again_forgives_the_failures_before() {
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

#[test]
fn a_return_waits_for_the_keep_alive_in_flight_on_the_same_key() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    let outcome = bench.release(&session);
    assert!(bench.keeper.next_call(bench.now).is_none());
    bench.answer(session.number(), KeepAliveAnswer::Extended(None));
    assert_eq!(bench.take_back(), key("session#1"));
    assert_eq!(outcome.now_or_never(), Some(Ok(Released::Returned)));
    assert!(bench.call().is_none());
}

#[test]
fn a_session_released_while_it_is_borrowed_again_gives_back_what_the_borrow_brings() {
    for (answer, expected) in [
        (
            BorrowAnswer::Granted(Grant { key: "new".into(), ttl: TTL, minimal_life: None }),
            Some("new"),
        ),
        (BorrowAnswer::Nonsense { error: away(), key: Some("odd".into()) }, Some("odd")),
        (BorrowAnswer::Refused(denied()), None),
    ] {
        let mut bench = Bench::new(RULES);
        let session = bench.session(None);
        bench.beat(session.number());
        bench.answer(session.number(), KeepAliveAnswer::Forgotten);
        assert!(matches!(bench.call(), Some(Call::Borrow { .. })));
        let outcome = bench.release(&session);
        assert!(bench.keeper.next_call(bench.now).is_none());
        bench.keeper.borrowed_again(session.number(), answer, bench.now, bench.now);
        bench.tell();
        match expected {
            Some(expected) => assert_eq!(bench.take_back(), key(expected)),
            None => assert_eq!(outcome.now_or_never(), Some(Ok(Released::Missing))),
        }
        assert!(bench.call().is_none());
    }
}

#[test]
fn a_borrow_again_that_nobody_answered_is_given_back_by_its_id() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    bench.answer(session.number(), KeepAliveAnswer::Forgotten);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let Some(Call::Borrow { id, .. }) = bench.call() else { panic!("not a borrow") };
        ids.push(id);
        let answer = BorrowAnswer::Fault { error: away(), sent: true };
        bench.keeper.borrowed_again(session.number(), answer, bench.now, bench.now);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "one id through all retries");
    bench.release(&session).now_or_never();
    assert_eq!(bench.take_back(), Target::Borrow(ids[0]));
}

#[test]
fn workers_go_back_before_their_session_and_a_busy_worker_is_waited_for() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let (one, two) = (bench.worker(&session), bench.worker(&session));
    let Some(Call::KeepAlive { number, .. }) = bench.call() else { panic!("no keep-alive") };
    bench.release(&session).now_or_never();
    bench.tell();
    assert_eq!(one.end_reason(), Some(&Error::SessionNotFound));
    assert_eq!(two.end_reason(), Some(&Error::SessionNotFound));
    let mut order = Vec::new();
    while let Some(Call::Return { number, target, .. }) = bench.keeper.next_call(bench.now) {
        order.push(target);
        let answer = ReturnAnswer { outcome: Err(away()), again: true, answered: true };
        bench.keeper.returned(number, answer, bench.now);
    }
    // Whichever was busy with its keep-alive is still missing, and the session waits.
    assert!(!order.contains(&key(&bench_key(number))));
    assert!(number == session.number() || !order.contains(&key("session#1")));
    bench.answer(number, KeepAliveAnswer::Extended(None));
    let last = bench.take_back();
    assert!(last == key(&bench_key(number)));
    if number != session.number() {
        assert_eq!(bench.take_back(), key("session#1"));
    }

    fn bench_key(number: u64) -> String {
        if number == 1 { "session#1".into() } else { format!("worker#{number}") }
    }
}

#[test]
fn a_session_carries_the_minimal_life_of_the_url_then_the_servers_then_five_seconds() {
    let second = Duration::from_secs;
    for (url, server, asked_for, sent) in [
        (None, None, None, second(5)),
        (None, Some(second(7)), None, second(7)),
        (Some(second(9)), Some(second(7)), None, second(9)),
        (Some(second(9)), Some(second(7)), Some(second(1)), second(1)),
    ] {
        let mut bench = Bench::new(Rules { minimal_life: url, ..RULES });
        bench.keeper.begin_session(&asked()).unwrap();
        let grant = Grant { key: "s".into(), ttl: TTL, minimal_life: server };
        let session =
            bench.keeper.granted(&asked(), None, None, grant, bench.now, bench.now).unwrap();
        let worker = bench.worker(&session);
        bench.keeper.release(worker.number(), None, bench.now).now_or_never();
        bench.keeper.release(session.number(), asked_for, bench.now).now_or_never();
        for expected in [None, Some(sent)] {
            let Some(Call::Return { number, minimal_life, .. }) = bench.call() else {
                panic!("not a return")
            };
            assert_eq!(minimal_life, expected);
            let outcome = Ok(Released::Returned);
            let answer = ReturnAnswer { outcome, again: true, answered: true };
            bench.keeper.returned(number, answer, bench.now);
        }
    }
}

#[test]
fn the_pools_own_ceiling_counts_sessions_held_and_under_way_per_organization_and_service() {
    let mut bench = Bench::new(Rules { most_sessions: Some(2), ..RULES });
    let held = bench.session(None);
    bench.keeper.begin_session(&asked()).unwrap();
    let full = Error::ConcurrentStreamLimitExceeded { active: 2, max: 2, scope: Scope::Pool };
    assert_eq!(bench.keeper.begin_session(&asked()).unwrap_err(), full);
    let elsewhere = Asked { organization: "umbra".into(), ..asked() };
    assert!(bench.keeper.begin_session(&elsewhere).is_ok());
    let otherwise = Asked { service: "t3x".into(), ..asked() };
    assert!(bench.keeper.begin_session(&otherwise).is_ok());
    // A borrow that failed leaves the count, and so does a released session.
    bench.keeper.borrow_over(&asked());
    assert!(bench.keeper.begin_session(&asked()).is_ok());
    assert!(bench.keeper.begin_session(&asked()).is_err());
    bench.release(&held).now_or_never();
    assert!(bench.keeper.begin_session(&asked()).is_ok());
    // Workers are not sessions.
    let mut bench = Bench::new(Rules { most_sessions: Some(1), ..RULES });
    let session = bench.session(None);
    drop((bench.worker(&session), bench.worker(&session)));
}

#[test]
fn a_cap_of_zero_admits_no_worker_instead_of_asking_for_a_session() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let refused = bench.keeper.begin_worker(session.number(), &"t2w".into(), 0).unwrap_err();
    assert_eq!(refused, Error::WorkersLimitExceeded { active: 0, max: 0, scope: Scope::Trace });
}

#[test]
fn a_grant_that_comes_after_the_close_or_after_its_session_is_given_back() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let asked = bench.keeper.begin_worker(session.number(), &"t2w".into(), 9).unwrap();
    bench.release(&session).now_or_never();
    let (grant, now) = (bench.grant("late"), bench.now);
    let refused =
        bench.keeper.granted(&asked, Some(session.number()), None, grant, now, now).unwrap_err();
    assert_eq!(refused, Error::SessionNotFound);
    let back = [bench.take_back(), bench.take_back()];
    assert!(back.contains(&key("session#1")) && back.contains(&key("late#2")));

    bench.keeper.begin_session(&self::asked()).unwrap();
    let mut closed = bench.keeper.close(bench.now);
    let grant = bench.grant("late");
    let refused = bench.keeper.granted(&self::asked(), None, None, grant, now, now).unwrap_err();
    assert_eq!(refused, Error::Closed);
    assert!(closed.try_recv().is_err());
    assert_eq!(bench.take_back(), key("late#3"));
    assert!(closed.try_recv().is_ok());
    assert_eq!(bench.keeper.begin_session(&self::asked()).unwrap_err(), Error::Closed);
}

#[test]
fn a_close_returns_everything_at_once_with_no_minimal_life_workers_first() {
    let mut bench = Bench::new(Rules { minimal_life: Some(TTL), ..RULES });
    let (calls, on_error) = recorded();
    let session = bench.session(on_error);
    let worker = bench.worker(&session);
    let mut closed = bench.keeper.close(bench.now);
    bench.tell();
    assert_eq!(*calls.lock(), [Error::Closed]);
    assert_eq!(worker.end_reason(), Some(&Error::Closed));
    let mut order = Vec::new();
    while let Some(Call::Return { number, target, minimal_life }) = bench.call() {
        assert!(minimal_life.is_none_or(|life| life.is_zero()));
        order.push(target);
        let outcome = Ok(Released::Returned);
        let answer = ReturnAnswer { outcome, again: true, answered: true };
        bench.keeper.returned(number, answer, bench.now);
    }
    assert_eq!(order, [key("worker#2"), key("session#1")]);
    bench.tell();
    assert!(closed.try_recv().is_ok() && bench.keeper.is_drained());
    assert_eq!(bench.keeper.report(), CloseReport { returned: 2, not_returned: 0 });
}

#[test]
fn a_close_that_gives_up_counts_what_could_not_be_returned() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    drop(bench.worker(&session));
    drop(bench.keeper.close(bench.now));
    assert_eq!(bench.keeper.report(), CloseReport { returned: 0, not_returned: 2 });
    bench.keeper.give_up();
    assert_eq!(bench.keeper.report(), CloseReport { returned: 0, not_returned: 2 });
    assert!(bench.keeper.is_drained());
}

#[test]
fn unanswered_borrows_waiting_for_their_return_are_bounded() {
    let mut bench = Bench::new(RULES);
    for id in 0..MOST_STRAYS as u128 + 10 {
        bench.keeper.stray(Target::Borrow(BorrowId(id)), TTL, bench.now);
    }
    assert_eq!(bench.keeper.returns.len(), MOST_STRAYS);
}

#[test]
fn many_keep_alives_are_under_way_at_once_and_no_more_than_the_bound() {
    let mut bench = Bench::new(RULES);
    let sessions: Vec<_> = (0..1000).map(|_| bench.session(None)).collect();
    bench.now += DELAY;
    let mut calls = 0;
    while bench.keeper.next_call(bench.now).is_some() {
        calls += 1;
    }
    assert_eq!(calls, 256);
    assert_eq!(bench.keeper.next_time(bench.now), None, "only an answer makes room");
    drop(sessions);
}

#[test]
fn a_held_lease_costs_less_than_a_kibibyte() {
    // Everything of one lease but its texts: hash tables are at least 7/16 full, heaps half full.
    let table = (size_of::<(u64, Box<Held>)>() + 1) * 16 / 7 + size_of::<Held>();
    let schedule = Heartbeat::BYTES_PER_LEASE;
    let shared = size_of::<Lease>() + 2 * size_of::<usize>();
    let texts = 64;
    let allocator = 3 * 16;
    assert!(table + schedule + shared + texts + allocator < 1024);
}
