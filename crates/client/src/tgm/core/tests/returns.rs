//! Returns, closes and their bounds.

use super::*;
use crate::plugin::CloseReport;

#[test]
fn a_return_waits_for_the_keep_alive_in_flight_on_the_same_key() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    let outcome = bench.release(&session);
    assert!(bench.poll_call().is_none());
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
        (BorrowAnswer::Invalid { error: away(), key: Some("odd".into()) }, Some("odd")),
        (BorrowAnswer::Refused { error: away(), key: Some("odd".into()) }, Some("odd")),
        (BorrowAnswer::Refused { error: denied(), key: None }, None),
    ] {
        let mut bench = Bench::new(RULES);
        let session = bench.session(None);
        bench.beat(session.number());
        bench.answer(session.number(), KeepAliveAnswer::Forgotten);
        assert!(matches!(bench.call(), Some(Call::Borrow { .. })));
        let outcome = bench.release(&session);
        assert!(bench.poll_call().is_none());
        bench.core.handle_borrow(session.number(), answer, bench.now, bench.now);
        bench.tell();
        match expected {
            Some(expected) => assert_eq!(bench.take_back(), key(expected)),
            None => assert_eq!(outcome.now_or_never(), Some(Ok(Released::Missing))),
        }
        assert!(bench.call().is_none());
    }
}

#[test]
fn a_key_that_comes_with_a_refusal_or_after_the_end_is_given_back() {
    let full = Error::WorkersLimitExceeded { active: 0, max: 0, scope: Scope::Unknown };
    for (answer, ends_before, expected) in [
        (BorrowAnswer::Refused { error: full.clone(), key: Some("odd".into()) }, false, "odd"),
        (BorrowAnswer::Invalid { error: away(), key: Some("odd".into()) }, false, "odd"),
        (BorrowAnswer::Refused { error: full, key: Some("odd".into()) }, true, "odd"),
        (
            BorrowAnswer::Granted(Grant { key: "new".into(), ttl: TTL, minimal_life: None }),
            true,
            "new",
        ),
    ] {
        let mut bench = Bench::new(RULES);
        let session = bench.session(None);
        bench.beat(session.number());
        bench.answer(session.number(), KeepAliveAnswer::Forgotten);
        assert!(matches!(bench.call(), Some(Call::Borrow { .. })));
        if ends_before {
            let key = session.key().to_string();
            let event = StreamEvent::Revoked { key, reason: denied() };
            bench.core.handle_stream(event, bench.now);
        }
        bench.core.handle_borrow(session.number(), answer, bench.now, bench.now);
        bench.tell();
        assert_eq!(bench.take_back(), key(expected));
        // The pool knows of no other lease of the ended session.
        if session.end_reason().is_some() {
            assert_eq!(bench.release(&session).now_or_never(), Some(Ok(Released::Missing)));
            assert!(bench.call().is_none());
        }
    }
}

#[test]
fn a_repeated_borrow_without_an_answer_is_returned_by_its_id() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    bench.beat(session.number());
    bench.answer(session.number(), KeepAliveAnswer::Forgotten);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let Some(Call::Borrow { id, .. }) = bench.call() else { panic!("not a borrow") };
        ids.push(id);
        let answer = BorrowAnswer::Fault { error: away(), sent: true };
        bench.core.handle_borrow(session.number(), answer, bench.now, bench.now);
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
    while let Some(Call::Return { number, target, .. }) = bench.poll_call() {
        order.push(target);
        let answer = ReturnAnswer { outcome: Err(away()), again: true, answered: true };
        bench.core.handle_return(number, answer, bench.now);
    }
    // The lease whose keep-alive is in flight is not returned yet, and neither is the session.
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
fn a_worker_whose_return_is_not_answered_keeps_its_session_for_a_second() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let worker = bench.worker(&session);
    bench.release(&session).now_or_never();
    let released = bench.now;
    let Some(Call::Return { number, .. }) = bench.call() else { panic!("no return") };
    assert_eq!((number, bench.now), (worker.number(), released));
    let Some(Call::Return { number, .. }) = bench.call() else { panic!("no return") };
    assert_eq!((number, bench.now), (session.number(), released + Duration::from_secs(1)));
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
        let asked = bench.begin().unwrap();
        let grant = Grant { key: "s".into(), ttl: TTL, minimal_life: server };
        let session = bench.core.handle_grant(&asked, None, grant, bench.now, bench.now).unwrap();
        let worker = bench.worker(&session);
        bench.core.release(worker.number(), None, bench.now).now_or_never();
        bench.core.release(session.number(), asked_for, bench.now).now_or_never();
        for expected in [None, Some(sent)] {
            let Some(Call::Return { number, minimal_life, .. }) = bench.call() else {
                panic!("not a return")
            };
            assert_eq!(minimal_life, expected);
            let outcome = Ok(Released::Returned);
            let answer = ReturnAnswer { outcome, again: true, answered: true };
            bench.core.handle_return(number, answer, bench.now);
        }
    }
}

#[test]
fn the_pools_own_limit_counts_sessions_held_and_in_flight_per_organization_and_service() {
    let mut bench = Bench::new(Rules { most_sessions: Some(2), ..RULES });
    let held = bench.session(None);
    let begun = bench.begin().unwrap();
    let full = Error::ConcurrentStreamLimitExceeded { active: 2, max: 2, scope: Scope::Pool };
    assert_eq!(bench.begin().unwrap_err(), full);
    let elsewhere = Ids { organization: "umbra".into(), ..ids() };
    assert!(bench.core.begin_session(&elsewhere, bench.now).is_ok());
    let otherwise = Ids { service: "t3x".into(), ..ids() };
    assert!(bench.core.begin_session(&otherwise, bench.now).is_ok());
    // A failed borrow is no longer counted, and neither is a released session.
    bench.core.end_borrow(&begun, bench.now);
    assert!(bench.begin().is_ok());
    assert!(bench.begin().is_err());
    bench.release(&held).now_or_never();
    assert!(bench.begin().is_ok());
    // An empty organization counts as the organization "anonymous".
    for organization in ["", "anonymous"] {
        let nobody = Ids { organization: organization.into(), ..ids() };
        assert!(bench.core.begin_session(&nobody, bench.now).is_ok());
    }
    let nobody = Ids { organization: "".into(), ..ids() };
    assert_eq!(bench.core.begin_session(&nobody, bench.now).unwrap_err(), full);
    // Workers are not sessions.
    let mut bench = Bench::new(Rules { most_sessions: Some(1), ..RULES });
    let session = bench.session(None);
    drop((bench.worker(&session), bench.worker(&session)));
}

#[test]
fn a_cap_of_zero_admits_no_worker_instead_of_asking_for_a_session() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let refused = bench.core.begin_worker(session.number(), &"t2w".into(), 0).unwrap_err();
    assert_eq!(refused, Error::WorkersLimitExceeded { active: 0, max: 0, scope: Scope::Trace });
}

#[test]
fn a_grant_that_comes_after_the_close_or_after_its_session_is_given_back() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    let asked = bench.core.begin_worker(session.number(), &"t2w".into(), 9).unwrap();
    bench.release(&session).now_or_never();
    let (grant, now) = (bench.grant("late"), bench.now);
    let refused = bench.core.handle_grant(&asked, None, grant, now, now).unwrap_err();
    assert_eq!(refused, Error::SessionNotFound);
    let back = [bench.take_back(), bench.take_back()];
    assert!(back.contains(&key("session#1")) && back.contains(&key("late#2")));

    let asked = bench.begin().unwrap();
    let mut closed = bench.core.close(bench.now);
    let grant = bench.grant("late");
    let refused = bench.core.handle_grant(&asked, None, grant, now, now).unwrap_err();
    assert_eq!(refused, Error::Closed);
    assert!(closed.try_recv().is_err());
    assert_eq!(bench.take_back(), key("late#3"));
    assert!(closed.try_recv().is_ok());
    assert_eq!(bench.begin().unwrap_err(), Error::Closed);
}

#[test]
fn a_close_returns_everything_at_once_with_no_minimal_life_workers_first() {
    let mut bench = Bench::new(Rules { minimal_life: Some(TTL), ..RULES });
    let (calls, on_error) = recorded();
    let session = bench.session(on_error);
    let worker = bench.worker(&session);
    let mut closed = bench.core.close(bench.now);
    bench.tell();
    assert_eq!(*calls.lock(), [Error::Closed]);
    assert_eq!(worker.end_reason(), Some(&Error::Closed));
    let mut order = Vec::new();
    while let Some(Call::Return { number, target, minimal_life }) = bench.call() {
        assert!(minimal_life.is_none_or(|life| life.is_zero()));
        order.push(target);
        let outcome = Ok(Released::Returned);
        let answer = ReturnAnswer { outcome, again: true, answered: true };
        bench.core.handle_return(number, answer, bench.now);
    }
    assert_eq!(order, [key("worker#2"), key("session#1")]);
    bench.tell();
    assert!(closed.try_recv().is_ok() && bench.core.is_drained());
    assert_eq!(bench.core.report(), CloseReport { returned: 2, not_returned: 0 });
}

#[test]
fn a_close_that_gives_up_counts_what_could_not_be_returned() {
    let mut bench = Bench::new(RULES);
    let session = bench.session(None);
    drop(bench.worker(&session));
    drop(bench.core.close(bench.now));
    assert_eq!(bench.core.report(), CloseReport { returned: 0, not_returned: 2 });
    bench.core.give_up(bench.now);
    assert_eq!(bench.core.report(), CloseReport { returned: 0, not_returned: 2 });
    assert!(bench.core.is_drained());
}

#[test]
fn unanswered_borrows_waiting_for_their_return_are_bounded() {
    let mut bench = Bench::new(RULES);
    for id in 0..MOST_STRAYS as u128 + 10 {
        bench.core.stray(Target::Borrow(BorrowId(id)), TTL, bench.now);
    }
    assert_eq!(bench.core.leases.returning.len(), MOST_STRAYS);
}

#[test]
fn many_keep_alives_are_in_flight_and_no_more_than_the_bound() {
    let mut bench = Bench::new(RULES);
    let sessions: Vec<_> = (0..1000).map(|_| bench.session(None)).collect();
    bench.now += DELAY;
    let mut calls = 0;
    while bench.poll_call().is_some() {
        calls += 1;
    }
    assert_eq!(calls, 256);
    assert_eq!(bench.core.poll_timeout(bench.now), None, "only an answer makes room");
    drop(sessions);
}

#[test]
fn a_held_lease_costs_less_than_three_quarters_of_a_kibibyte() {
    // The memory of one lease. Hash tables are at least 7/16 full, and the nodes of trees at least
    // half full.
    let table = (size_of::<(u64, Box<Held>)>() + 1) * 16 / 7 + size_of::<Held>();
    let keys = (size_of::<(Arc<str>, u64)>() + 1) * 16 / 7;
    let schedule = 3 * size_of::<(Instant, u64)>();
    let shared = size_of::<Lease>() + 2 * size_of::<usize>();
    let texts = 64;
    let allocator = 3 * 16;
    let bytes = table + keys + schedule + shared + texts + allocator;
    assert!(bytes < 768, "{bytes}");
}
