use std::collections::HashMap;
use std::time::Duration;

use tgm_session::{Error, Scope};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Response, Status};
use wire::worker::KeepAliveResponse;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as Said;

use crate::scripted::{self, Call, Script, answer_with_status, granted, stream};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_session_is_kept_alive_under_its_key_and_api_key() {
    let mut script = Script::new();
    let pool = script.pool("indexer-api-key=s3cret");
    let start = Instant::now();
    let session = script.session(&pool, "s").await;
    for beat in 1..20 {
        let call = script.keep_alive().await;
        assert_eq!((&*call.message.worker_key, &*call.message.api_key_id), ("s", "key-1"));
        assert_eq!(call.header("x-api-key"), Some("s3cret"));
        assert!(call.at - start <= (20 * SECOND * beat).mul_f64(1.05));
        call.extend();
    }
    assert!(start.elapsed() > 330 * SECOND);
    assert_eq!(session.end_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_short_ttl_is_kept_alive_three_times_within_it() {
    let mut script = Script::new();
    let pool = script.pool("");
    let (session, ()) = tokio::join!(pool.borrow(stream()), async {
        let mut short = granted("s");
        short.metadata_mut().insert("x-lease-ttl-ms", "3000".parse().unwrap());
        script.borrow().await.answer(Ok(short));
    });
    let mut last = Instant::now();
    for _ in 0..10 {
        let call = script.keep_alive().await;
        assert!(call.at - last <= SECOND.mul_f64(1.06), "{:?}", call.at - last);
        last = call.at;
        call.extend();
    }
    drop(session);
}

#[tokio::test(start_paused = true)]
async fn a_ttl_in_the_answer_to_a_keep_alive_applies_from_then_on() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let mut shorter = KeepAliveResponse::default();
    shorter.set_status(Said::TtlExtended);
    let mut shorter = Response::new(shorter);
    shorter.metadata_mut().insert("x-lease-ttl-ms", "3000".parse().unwrap());
    script.keep_alive().await.answer(Ok(shorter));
    let told = Instant::now();
    // The next keep-alive comes after a third of the new TTL. The session is lost after 95 % of
    // the TTL.
    let beat = script.keep_alive().await;
    assert!(beat.at - told <= SECOND.mul_f64(1.06), "{:?}", beat.at - told);
    beat.fail(Status::unavailable("gone"));
    let lost = tokio::select! {
        lost = session.ended() => lost,
        () = async { loop { script.keep_alive().await.fail(Status::unavailable("gone")) } } =>
            unreachable!(),
    };
    assert!(matches!(lost, Error::Lost { .. }), "{lost}");
    assert_eq!(told.elapsed(), 3 * SECOND * 19 / 20);
}

#[tokio::test(start_paused = true)]
async fn three_hundred_workers_of_a_slow_server_are_kept_alive_side_by_side() {
    const SLOW: Duration = Duration::from_millis(100);
    let mut script = Script::new();
    let pool = script.pool("request-keep-alive-delay=2s");
    let session = script.session(&pool, "s").await;
    let mut workers = Vec::new();
    for number in 0..300 {
        let asked = session.borrow_worker("t2w", 300);
        let granted = async {
            loop {
                match script.call().await {
                    Call::Borrow(borrow) => break borrow.grant(&format!("w{number}")),
                    Call::KeepAlive(beat) => beat.extend(),
                    Call::Return(_) => panic!("nothing was released"),
                }
            }
        };
        workers.push(tokio::join!(asked, granted).0.unwrap());
    }
    // One after another, 301 answers of 100 ms would take half a minute per round.
    let (start, mut last) = (Instant::now(), HashMap::new());
    let mut longest = Duration::ZERO;
    while start.elapsed() < 20 * SECOND {
        let Call::KeepAlive(beat) = script.call().await else { panic!("not a keep-alive") };
        if let Some(last) = last.insert(beat.message.worker_key.clone(), beat.at) {
            longest = longest.max(beat.at - last);
        }
        tokio::spawn(async move {
            sleep_until(beat.at + SLOW).await;
            beat.extend();
        });
    }
    assert_eq!(last.len(), 301);
    assert!(longest <= (2 * SECOND).mul_f64(1.06) + 2 * SLOW, "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn a_denied_keep_alive_ends_the_session_once_with_and_without_a_callback() {
    for (status, reason) in [
        (
            Status::permission_denied("disabled"),
            Error::PermissionDenied { message: "disabled".into() },
        ),
        (Status::resource_exhausted("spent"), Error::QuotaExceeded { message: "spent".into() }),
    ] {
        let mut script = Script::new();
        let pool = script.pool("");
        let (told, mut hears) = mpsc::unbounded_channel();
        let request = stream().on_error(move |said| {
            told.send(said).unwrap();
            panic!("a careless callback");
        });
        let heard = script.grant("heard", pool.borrow(request)).await.unwrap();
        let silent = script.session(&pool, "silent").await;
        for _ in 0..2 {
            script.keep_alive().await.fail(status.clone());
        }
        assert_eq!(heard.ended().await, reason);
        assert_eq!(silent.ended().await, reason);
        assert_eq!(hears.recv().await, Some(reason.clone()));
        assert_eq!(hears.recv().await, None);
        // The pool survived the panic. The ended sessions are neither kept alive nor borrowed
        // again.
        script.hears_nothing_for(300 * SECOND).await;
        assert_eq!(heard.borrow_worker("t2w", 1).await.unwrap_err(), reason);
        drop(heard);
        assert_eq!(script.give_back().await.message.worker_key, "heard");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_the_server_forgot_is_borrowed_again_and_its_handle_stays_valid() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "old").await;
    let first = script.keep_alive().await;
    first.say(Said::Failed);
    let again = script.borrow().await;
    assert_eq!((&*again.message.organization_id, &*again.message.trace_id), ("acme", "trace-1"));
    assert!(again.header("x-borrow-id").is_some());
    again.grant("new");
    let beat = script.keep_alive().await;
    assert_eq!(beat.message.worker_key, "new");
    beat.extend();
    assert_eq!((&*session.key(), session.end_reason()), ("new", None));
    drop(session);
    assert_eq!(script.give_back().await.message.worker_key, "new");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_that_forgot_everything_sessions_are_borrowed_before_their_workers() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let mut workers = Vec::new();
    for number in 0..20 {
        workers.push(script.worker(&session, &format!("w{number}")).await);
    }
    let (mut session_is_back, mut back) = (false, 0);
    while back < 20 {
        match script.call().await {
            Call::KeepAlive(beat) if beat.message.worker_key.ends_with('+') => beat.extend(),
            Call::KeepAlive(beat) => beat.say(Said::Failed),
            Call::Borrow(borrow) => {
                assert!(session_is_back || !borrow.is_worker(), "a worker came first");
                back += usize::from(borrow.is_worker());
                session_is_back |= !borrow.is_worker();
                borrow.grant(&format!("{back}+"));
            }
            Call::Return(_) => panic!("nothing was released"),
        }
    }
    assert!(workers.iter().all(|worker| worker.end_reason().is_none()));
    assert_eq!(session.end_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_worker_that_the_server_cannot_decide_on_is_asked_for_until_it_can() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let worker = script.worker(&session, "w").await;
    let mut undecided = (0..5).map(|_| scripted::undecided());
    let mut names = Vec::new();
    while &*worker.key() != "again" {
        match script.call().await {
            Call::KeepAlive(beat) if beat.message.worker_key == "w" => beat.say(Said::Failed),
            Call::KeepAlive(beat) => beat.extend(),
            Call::Borrow(borrow) => {
                assert!(borrow.is_worker());
                names.push(borrow.header("x-borrow-id").unwrap().to_owned());
                borrow.answer(Ok(undecided.next().unwrap_or_else(|| granted("again"))));
            }
            Call::Return(_) => panic!("nothing was released"),
        }
    }
    assert!(names.len() == 6 && names.iter().all(|name| *name == names[0]), "{names:?}");
    assert_eq!((session.end_reason(), worker.end_reason()), (None, None));
}

#[tokio::test(start_paused = true)]
async fn a_session_refused_when_borrowed_again_ends_as_lost() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    script.keep_alive().await.say(Said::Failed);
    let mut full = answer_with_status(BorrowStatus::ResourceExhausted, "");
    full.metadata_mut().insert("x-denied-scope", "service".parse().unwrap());
    full.metadata_mut().insert("x-denied-active", "4000".parse().unwrap());
    full.metadata_mut().insert("x-denied-max", "4000".parse().unwrap());
    script.borrow().await.answer(Ok(full));
    let Error::Lost { cause } = session.ended().await else { panic!("not lost") };
    assert_eq!(
        *cause,
        Error::ConcurrentStreamLimitExceeded { active: 4000, max: 4000, scope: Scope::Service }
    );
    // The server holds no lease for the session, so there is nothing to return.
    drop(session);
    script.hears_nothing_for(300 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_borrow_of_a_forgotten_session_keeps_its_id_and_is_returned_by_it() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    script.keep_alive().await.say(Said::Failed);
    let first = script.borrow().await;
    let name = first.header("x-borrow-id").unwrap().to_owned();
    first.fail(Status::unavailable("draining"));
    let second = script.borrow().await;
    assert_eq!(second.header("x-borrow-id"), Some(&*name));
    drop(session);
    // The return waits for the borrow in flight, and then names it by its borrow id.
    script.hears_nothing_for(SECOND).await;
    second.fail(Status::unavailable("draining"));
    let back = script.give_back().await;
    assert_eq!((&*back.message.worker_key, back.header("x-borrow-id")), ("", Some(&*name)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_keep_alive_is_repeated_every_second_until_95_percent_of_a_ttl_have_passed() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let first = script.keep_alive().await;
    let kept = first.at;
    first.extend();
    let mut ended = Box::pin(session.ended());
    let mut beats = Vec::new();
    let reason = loop {
        tokio::select! {
            reason = &mut ended => break reason,
            beat = script.keep_alive() => {
                beats.push(beat.at);
                beat.fail(Status::unavailable("the store failed"));
            }
        }
    };
    let after = kept.elapsed();
    assert!((57 * SECOND..58 * SECOND).contains(&after), "{after:?}");
    for pair in beats.windows(2) {
        assert!((pair[1] - pair[0]).abs_diff(SECOND) < SECOND / 10, "{:?}", pair[1] - pair[0]);
    }
    assert!(beats.len() >= 32, "{}", beats.len());
    let Error::Lost { cause } = reason else { panic!("{reason}") };
    assert!(cause.to_string().contains("the store failed"), "{cause}");
    script.hears_nothing_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_is_lost_before_its_ttl_is_over_if_the_server_never_answers() {
    let mut script = Script::new();
    let pool = script.pool("");
    let start = Instant::now();
    let session = script.session(&pool, "s").await;
    let mut silent = Vec::new();
    let mut ended = Box::pin(session.ended());
    let reason = loop {
        tokio::select! {
            reason = &mut ended => break reason,
            call = script.call() => silent.push(call),
        }
    };
    assert!(matches!(reason, Error::Lost { .. }));
    assert!((57 * SECOND..59 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert!(silent.len() >= 6, "each try has a deadline of its own: {}", silent.len());
}

#[tokio::test(start_paused = true)]
async fn an_outage_shorter_than_the_ttl_ends_no_session() {
    let mut script = Script::new();
    let pool = script.pool("");
    let mut sessions = Vec::new();
    for number in 0..50 {
        sessions.push(script.session(&pool, &format!("s{number}")).await);
    }
    for _ in 0..5 {
        let (start, mut kept) = (Instant::now(), HashMap::new());
        while start.elapsed() < 60 * SECOND {
            let Ok(Call::KeepAlive(beat)) = timeout(SECOND, script.call()).await else { continue };
            if start.elapsed() < 30 * SECOND {
                beat.fail(Status::unavailable("restarting"));
            } else {
                kept.insert(beat.message.worker_key.clone(), ());
                beat.extend();
            }
        }
        assert_eq!(kept.len(), 50);
    }
    assert!(sessions.iter().all(|session| session.end_reason().is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_revokes_nothing_is_a_failure_and_ends_nothing_by_itself() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    script.keep_alive().await.fail(Status::unauthenticated("unknown key"));
    script.keep_alive().await.fail(Status::invalid_argument("?"));
    script.keep_alive().await.extend();
    assert_eq!(session.end_reason(), None);
    script.keep_alive().await.extend();
    assert_eq!(session.keep_alives(), 1, "only the one answer that extended it");
}

#[tokio::test(start_paused = true)]
async fn a_callback_that_blocks_or_panics_holds_up_no_keep_alive_and_no_other_callback() {
    let mut script = Script::new();
    let pool = script.pool("");
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let (told, hears) = tokio::sync::oneshot::channel();
    let blocking = stream().on_error(move |_| {
        let _ = wait.recv();
    });
    let blocking = script.grant("blocking", pool.borrow(blocking)).await.unwrap();
    let panicking = stream().on_error(|_| panic!("in a callback"));
    let panicking = script.grant("panicking", pool.borrow(panicking)).await.unwrap();
    let telling = stream().on_error(move |reason| told.send(reason).unwrap());
    let telling = script.grant("telling", pool.borrow(telling)).await.unwrap();

    let mut beats = 0;
    while beats < 3 || blocking.end_reason().is_none() || panicking.end_reason().is_none() {
        let beat = script.keep_alive().await;
        if beat.message.worker_key == "telling" {
            beat.extend();
            beats += 1;
        } else {
            beat.fail(Status::permission_denied("disabled"));
        }
    }
    script.keep_alive().await.fail(Status::permission_denied("disabled"));
    let disabled = Error::PermissionDenied { message: "disabled".into() };
    assert_eq!(telling.ended().await, disabled);
    assert_eq!(hears.await, Ok(disabled));
    drop(release);
}
