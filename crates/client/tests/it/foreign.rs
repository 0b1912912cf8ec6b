//! Servers of other authors. The library accepts the answers that the plugin of Go accepts.

use std::time::Duration;

use tgm_session::{Error, Released, Scope, Session};
use tonic::{Code, Status};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::{KeepAliveResponse, ReturnWorkerResponse};

use crate::scripted::{Borrow, Call, Script, answer_with_status, stream};

const SECOND: Duration = Duration::from_secs(1);

/// Refuses a borrow without the numbers of the limit, but with the key of a lease.
fn refuse_with_a_key(borrow: Borrow, key: &str) {
    borrow.answer(Ok(answer_with_status(BorrowStatus::ResourceExhausted, key)));
}

#[tokio::test(start_paused = true)]
async fn keep_alives_and_returns_succeed_at_a_server_that_answers_only_ok() {
    for status in [0, 77] {
        let mut script = Script::new();
        let pool = script.pool("");
        let session = script.session(&pool, "s").await;
        for beats in 1..=20 {
            let beat = script.keep_alive().await;
            assert_eq!(beat.message.worker_key, "s");
            beat.answer(Ok(tonic::Response::new(KeepAliveResponse { status })));
            until_kept_alive(&session, beats).await;
        }
        assert_eq!((session.end_reason(), pool.stats().keep_alives_failed), (None, 0));
        let (outcome, ()) = tokio::join!(session.release(), async {
            let back = script.give_back().await;
            back.answer(Ok(tonic::Response::new(ReturnWorkerResponse { status })));
        });
        assert_eq!(outcome, Ok(Released::Returned));
        script.hears_nothing_for(120 * SECOND).await;
    }
}

async fn until_kept_alive(session: &Session, times: u64) {
    while session.keep_alives() < times {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_with_a_key_has_no_numbers_and_its_key_is_returned() {
    let mut script = Script::new();
    let pool = script.pool("");
    let (active, max, scope) = (0, 0, Scope::Unknown);

    let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
        refuse_with_a_key(script.borrow().await, "stray session");
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused, Error::ConcurrentStreamLimitExceeded { active, max, scope });
    assert_eq!(refused.to_string(), "Concurrent stream limit exceeded");
    let back = script.give_back().await;
    assert_eq!(back.message.worker_key, "stray session");
    back.take();

    let session = script.session(&pool, "s").await;
    let (refused, ()) = tokio::join!(session.borrow_worker("t2w", 3), async {
        refuse_with_a_key(script.borrow().await, "stray worker");
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused, Error::WorkersLimitExceeded { active, max, scope });
    assert_eq!(refused.to_string(), "Worker limit exceeded");
    let back = script.give_back().await;
    assert_eq!(back.message.worker_key, "stray worker");
    back.take();
    assert_eq!(session.end_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_not_found_has_no_session_and_is_not_asked_for_again() {
    let mut script = Script::new();
    let pool = script.pool("borrow-wait=1h");
    let session = script.session(&pool, "s").await;
    let (refused, ()) = tokio::join!(session.borrow_worker("t2w", 3), async {
        script.borrow().await.fail(Status::not_found("no session under this trace"));
    });
    assert_eq!(refused.unwrap_err(), Error::SessionNotFound);
    // The answer is about the worker, so it does not end the session.
    assert_eq!(session.end_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_not_found_is_borrowed_again_and_is_returned() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "old").await;
    script.keep_alive().await.fail(Status::not_found("no such key"));
    script.borrow().await.grant("new");
    script.keep_alive().await.extend();
    assert_eq!((&*session.key(), session.end_reason()), ("new", None));
    let (outcome, ()) = tokio::join!(session.release(), async {
        script.give_back().await.fail(Status::not_found("no such key"));
    });
    assert_eq!(outcome, Ok(Released::Missing));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_with_any_code_ends_no_session_and_keep_alives_go_by_calls() {
    for code in (0..=16).map(Code::from) {
        let (mut script, mut streams) = Script::attachable();
        let pool = script.pool("");
        let session = script.session(&pool, "s").await;
        let mut attached = streams.recv().await.unwrap();
        let batch = attached.batch().await.unwrap();
        assert_eq!(batch.worker_keys, ["s"]);
        attached.fail(Status::new(code, "in its own words"));
        let beat = script.keep_alive().await;
        assert_eq!(beat.message.worker_key, "s", "{code:?}");
        beat.extend();
        // Whether the stream is opened again in a second or after minutes, the session goes on.
        let again = tokio::time::timeout(100 * SECOND, async {
            loop {
                tokio::select! {
                    attached = streams.recv() => break attached.is_some(),
                    call = script.call() => match call {
                        Call::KeepAlive(beat) => beat.extend(),
                        call => panic!("{code:?}: {}", call.name()),
                    },
                }
            }
        });
        let knows_the_stream = code != Code::Unimplemented;
        let attached = again.await;
        assert_eq!(attached.is_ok(), knows_the_stream, "{code:?}");
        assert_eq!((session.end_reason(), pool.stats().lost), (None, 0), "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_state_is_not_read_as_an_empty_pool() {
    let script = Script::new();
    let refused = script.plugin("").state("t1r", "acme").await.unwrap_err();
    assert!(
        matches!(&refused, Error::Unavailable { message, .. } if message.contains("without a state"))
    );
}
