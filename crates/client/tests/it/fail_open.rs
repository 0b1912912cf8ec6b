use std::time::Duration;

use tgm_session::{Error, Pool, Scope, Session};
use tokio::time::{Instant, sleep};
use tonic::Status;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as Said;

use crate::scripted::{Call, Script, answer_with_status, granted, stream, undecided};

const SECOND: Duration = Duration::from_secs(1);

/// A server that cannot be reached, and a pool that fails open.
fn away(parameters: &str) -> (Script, Pool) {
    let script = Script::new();
    script.set_reachable(false);
    let pool = script.pool(&format!("on-unavailable=allow&{parameters}"));
    (script, pool)
}

async fn admitted(pool: &Pool) -> Session {
    let session = pool.borrow(stream()).await.unwrap();
    assert!(session.key().starts_with("offline-"), "{}", session.key());
    session
}

fn full(active: u64, max: u64, scope: Scope) -> Error {
    Error::ConcurrentStreamLimitExceeded { active, max, scope }
}

#[tokio::test(start_paused = true)]
async fn sessions_are_admitted_up_to_ten_of_an_organization_and_service_while_the_server_is_away() {
    let (_script, pool) = away("");
    let start = Instant::now();
    let mut sessions = vec![admitted(&pool).await];
    // The first borrow tried until its timeout. From now on the pool knows that the server is away.
    assert!(start.elapsed() >= 3 * SECOND && start.elapsed() <= 5 * SECOND);
    sleep(5 * SECOND - start.elapsed()).await;
    let known = Instant::now();
    for _ in 1..10 {
        sessions.push(admitted(&pool).await);
    }
    assert_eq!(pool.borrow(stream()).await.unwrap_err(), full(10, 10, Scope::Pool));
    let other = tgm_session::SessionRequest::new("t1r", "other");
    assert!(pool.borrow(other).await.is_ok());
    drop(sessions.pop());
    sessions.push(admitted(&pool).await);
    assert_eq!(known.elapsed(), Duration::ZERO);
    assert_eq!((pool.stats().failed_open, pool.stats().sessions_held), (12, 10));
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_url_above_ten_applies_while_failing_open_under_both_parameter_names() {
    for name in ["default-max-request-per-organization", "default-max-request-per-user"] {
        let (_script, pool) = away(&format!("{name}=12"));
        let mut sessions = Vec::new();
        for _ in 0..12 {
            sessions.push(admitted(&pool).await);
        }
        assert_eq!(pool.borrow(stream()).await.unwrap_err(), full(12, 12, Scope::Pool));
    }
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_the_url_and_of_the_call_for_a_worker_apply_while_failing_open() {
    let (_script, pool) = away("default-max-request-per-organization=1");
    let session = admitted(&pool).await;
    assert_eq!(pool.borrow(stream()).await.unwrap_err(), full(1, 1, Scope::Pool));
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(session.borrow_worker("t2w", 3).await.unwrap());
    }
    let (active, max, scope) = (3, 3, Scope::Trace);
    let refused = session.borrow_worker("t2w", 3).await.unwrap_err();
    assert_eq!(refused, Error::WorkersLimitExceeded { active, max, scope });
    drop(workers.pop());
    assert!(session.borrow_worker("t2w", 3).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_the_server_cannot_decide_on_is_admitted_as_if_it_were_away() {
    let mut script = Script::new();
    let pool = script.pool("on-unavailable=allow&borrow-timeout=2s");
    let session = script.session(&pool, "s").await;
    let start = Instant::now();
    let worker = tokio::select! {
        worker = session.borrow_worker("t2w", 3) => worker.unwrap(),
        () = async { loop { script.borrow_amid_beats().await.answer(Ok(undecided())) } } => {
            unreachable!()
        }
    };
    assert!(worker.key().starts_with("offline-"), "{}", worker.key());
    assert!(start.elapsed() <= 2 * SECOND, "{:?}", start.elapsed());
    // The client asks for the worker until the server can decide.
    for answer in [undecided(), undecided(), granted("w")] {
        script.borrow_amid_beats().await.answer(Ok(answer));
    }
    while &*worker.key() != "w" {
        script.keep_alive().await.extend();
    }
    assert_eq!((session.end_reason(), worker.end_reason()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn admitted_leases_are_borrowed_when_the_server_is_back_sessions_first_and_paced() {
    let (mut script, pool) = away("");
    let first = admitted(&pool).await;
    let worker = first.borrow_worker("t2w", 3).await.unwrap();
    let second = admitted(&pool).await;
    sleep(600 * SECOND).await;
    assert_eq!((first.end_reason(), worker.end_reason()), (None, None));
    script.set_reachable(true);
    let mut at = Vec::new();
    for key in ["s1", "s2", "w"] {
        let borrow = script.borrow().await;
        assert_eq!(borrow.is_worker(), key == "w");
        at.push(borrow.at);
        borrow.grant(key);
    }
    assert!(at[2] > at[0], "{at:?}");
    for _ in 0..3 {
        script.keep_alive().await.extend();
    }
    assert_eq!(&*worker.key(), "w");
    assert!([&first, &second].iter().all(|session| session.key().starts_with('s')));
    assert_eq!((first.end_reason(), second.end_reason()), (None, None));
    assert_eq!(pool.stats().borrowed_again, 3);
    // The pool admits no more sessions without the server.
    let (third, ()) = tokio::join!(pool.borrow(stream()), async {
        script.borrow_amid_beats().await.grant("s3");
    });
    assert_eq!(&*third.unwrap().key(), "s3");
}

#[tokio::test(start_paused = true)]
async fn an_admitted_session_that_the_server_has_no_place_for_ends_as_over_the_limit() {
    let (mut script, pool) = away("");
    let session = admitted(&pool).await;
    let worker = session.borrow_worker("t2w", 3).await.unwrap();
    script.set_reachable(true);
    let mut refusal = answer_with_status(BorrowStatus::ResourceExhausted, "");
    for (name, value) in
        [("x-denied-scope", "organization"), ("x-denied-active", "7"), ("x-denied-max", "7")]
    {
        refusal.metadata_mut().insert(name, value.parse().unwrap());
    }
    script.borrow().await.answer(Ok(refusal));
    assert_eq!(session.ended().await, full(7, 7, Scope::Organization));
    assert_eq!(worker.ended().await, full(7, 7, Scope::Organization));
    assert_eq!(session.borrow_worker("t2w", 1).await.unwrap_err(), full(7, 7, Scope::Organization));
    drop((worker, session));
    // The server never had these leases, so there is nothing to return.
    script.hears_nothing_for(300 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn running_sessions_outlive_any_outage_and_are_borrowed_again_if_they_were_forgotten() {
    let mut script = Script::new();
    let pool = script.pool("on-unavailable=allow");
    let session = script.session(&pool, "s").await;
    let start = Instant::now();
    let mut tries = 0;
    while start.elapsed() < 600 * SECOND {
        script.keep_alive().await.fail(Status::unavailable("draining"));
        tries += 1;
    }
    assert!(tries > 500, "{tries}");
    assert_eq!(session.end_reason(), None);
    script.keep_alive().await.say(Said::Failed);
    script.borrow().await.grant("again");
    let beat = script.keep_alive().await;
    assert_eq!((&*beat.message.worker_key, session.end_reason()), ("again", None));
}

#[tokio::test(start_paused = true)]
async fn a_session_admitted_and_released_during_an_outage_causes_no_call() {
    let (mut script, pool) = away("");
    let session = admitted(&pool).await;
    let worker = session.borrow_worker("t2w", 3).await.unwrap();
    drop(worker);
    assert!(session.release().await.is_ok());
    script.set_reachable(true);
    script.hears_nothing_for(300 * SECOND).await;
    assert_eq!(pool.stats().sessions_held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_borrow_that_may_have_been_granted_is_repeated_with_its_id() {
    let mut script = Script::new();
    let pool = script.pool("on-unavailable=allow");
    let mut names = Vec::new();
    let borrow = pool.borrow(stream());
    tokio::pin!(borrow);
    let session = loop {
        tokio::select! {
            session = &mut borrow => break session.unwrap(),
            call = script.call() => match call {
                Call::Borrow(call) => {
                    names.push(call.header("x-borrow-id").unwrap().to_owned());
                    call.fail(Status::unavailable("the store is slow"));
                }
                call => panic!("not a borrow: {}", call.name()),
            },
        }
    };
    assert!(session.key().starts_with("offline-"));
    let real = script.borrow().await;
    assert!(names.iter().all(|name| Some(&**name) == real.header("x-borrow-id")));
    // The server ended that lease meanwhile, and grants no other one for the same borrow id.
    real.fail(Status::cancelled("that borrow is over"));
    let back = script.give_back().await;
    assert_eq!(back.header("x-borrow-id"), Some(&*names[0]));
    back.take();
    let real = script.borrow().await;
    assert_ne!(real.header("x-borrow-id"), Some(&*names[0]));
    real.grant("s");
    script.keep_alive().await.extend();
    assert_eq!(&*session.key(), "s");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_server_applies_to_a_pool_that_fails_open_too() {
    let mut script = Script::new();
    let pool = script.pool("on-unavailable=allow");
    let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
        script.borrow().await.fail(Status::permission_denied("disabled"));
    });
    assert_eq!(refused.unwrap_err(), Error::PermissionDenied { message: "disabled".into() });
    let session = script.session(&pool, "s").await;
    script.keep_alive().await.fail(Status::resource_exhausted("spent"));
    assert_eq!(session.ended().await, Error::QuotaExceeded { message: "spent".into() });
}
