use std::collections::BTreeSet;
use std::time::Duration;

use tgm_session::{Error, Session};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout};
use tonic::Status;
use wire::control::attach_response::Event;
use wire::control::{BatchAnswer, Draining, Reason, Revocation, RevokedPlace};

use crate::scripted::{Attached, Call, Script, stream};

const SECOND: Duration = Duration::from_secs(1);

/// A new pool, its first session, and the stream that the pool opened.
async fn attached(
    script: &mut Script,
    streams: &mut UnboundedReceiver<Attached>,
    parameters: &str,
) -> (tgm_session::Pool, Session, Attached) {
    let pool = script.pool(parameters);
    let session = script.session(&pool, "s").await;
    let stream = timeout(SECOND, streams.recv()).await.unwrap().unwrap();
    (pool, session, stream)
}

fn disabled(key: &str) -> Event {
    let mut revoked = Revocation {
        worker_key: key.into(),
        message: "the organization is disabled".into(),
        ..Revocation::default()
    };
    revoked.set_reason(Reason::OrganizationDisabled);
    Event::Revoked(revoked)
}

#[tokio::test(start_paused = true)]
async fn a_new_lease_is_named_on_the_stream_within_a_tenth_of_a_second() {
    let (mut script, mut streams) = Script::attachable();
    let (pool, session, mut stream) =
        attached(&mut script, &mut streams, "indexer-api-key=s3cret").await;
    assert_eq!(stream.metadata.get("x-api-key").unwrap(), "s3cret");
    let first = stream.batch().await.unwrap();
    assert_eq!(first.worker_keys, ["s"]);
    stream.extend(&first);
    let granted = Instant::now();
    let worker = script.worker(&session, "w").await;
    let other = script.session(&pool, "s2").await;
    let second = stream.batch().await.unwrap();
    assert!(granted.elapsed() <= SECOND / 10, "{:?}", granted.elapsed());
    assert_eq!(second.worker_keys, ["w", "s2"]);
    stream.extend(&second);
    drop((worker, other));
}

#[tokio::test(start_paused = true)]
async fn keep_alives_go_in_batches_over_the_stream_and_none_by_itself() {
    let (mut script, mut streams) = Script::attachable();
    let (pool, first, mut stream) = attached(&mut script, &mut streams, "").await;
    let mut sessions = vec![first];
    for number in 0..400 {
        sessions.push(script.session(&pool, &format!("s{number}")).await);
    }
    let (start, mut batches, mut keys) = (Instant::now(), 0_u32, 0_u32);
    let mut last = std::collections::HashMap::new();
    let mut longest = Duration::ZERO;
    while start.elapsed() < 200 * SECOND {
        let batch = stream.batch().await.unwrap();
        batches += 1;
        for key in &batch.worker_keys {
            keys += 1;
            if let Some(before) = last.insert(key.clone(), Instant::now()) {
                longest = longest.max(before.elapsed());
            }
        }
        stream.extend(&batch);
    }
    assert_eq!(last.len(), 401);
    assert!(longest <= (20 * SECOND).mul_f64(1.06), "{longest:?}");
    assert!(keys / batches >= 2, "{keys} keys in {batches} batches");
    script.hears_nothing_for(Duration::from_millis(1)).await;
    assert!(sessions.iter().all(|session| session.keep_alives() >= 9));
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_names_everything_held_in_batches_of_a_thousand_keys_at_most() {
    const HELD: usize = 2500;
    let (mut script, mut streams) = Script::attachable();
    let pool = script.pool("");
    let mut sessions = Vec::new();
    for number in 0..HELD {
        sessions.push(script.session(&pool, &format!("s{number}")).await);
    }
    // The stream breaks. The next stream must name every lease that is held.
    streams.recv().await.unwrap().fail(Status::unavailable("going away"));
    let mut stream = next_stream(&mut script, &mut streams).await;
    let mut named = BTreeSet::new();
    while named.len() < HELD {
        let batch = stream.batch().await.unwrap();
        assert!(batch.worker_keys.len() <= 1000);
        named.extend(batch.worker_keys.iter().cloned());
        stream.extend(&batch);
    }
}

/// Waits for the next stream, and answers the keep-alives that come by calls meanwhile.
async fn next_stream(script: &mut Script, streams: &mut UnboundedReceiver<Attached>) -> Attached {
    loop {
        tokio::select! {
            stream = streams.recv() => return stream.unwrap(),
            call = script.call() => match call {
                Call::KeepAlive(beat) => beat.extend(),
                call => panic!("not a keep-alive: {}", call.name()),
            },
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pushed_revocation_ends_the_session_at_once_and_calls_back_once() {
    let (mut script, mut streams) = Script::attachable();
    let pool = script.pool("");
    let (sender, calls) = std::sync::mpsc::channel();
    let request = stream().on_error(move |reason| sender.send(reason).unwrap());
    let session = script.grant("s", pool.borrow(request)).await.unwrap();
    let other = script.session(&pool, "s2").await;
    let mut stream = streams.recv().await.unwrap();
    let batch = stream.batch().await.unwrap();
    let pushed = Instant::now();
    // The revocation is pushed twice, and comes again in the answer to a batch in flight.
    stream.say(disabled("s"));
    stream.say(disabled("s"));
    let place = batch.worker_keys.iter().position(|key| key == "s").unwrap() as u32;
    let mut revoked = RevokedPlace { place, ..RevokedPlace::default() };
    revoked.set_reason(Reason::OrganizationDisabled);
    let answer = BatchAnswer { batch: batch.batch, revoked: vec![revoked], ..Default::default() };
    stream.say(Event::Answer(answer));
    let reason = Error::PermissionDenied { message: "the organization is disabled".into() };
    assert_eq!(session.ended().await, reason);
    assert_eq!(pushed.elapsed(), Duration::ZERO);
    assert_eq!(session.borrow_worker("t2w", 1).await.unwrap_err(), reason);
    // Only the session that was named is ended, and it is never kept alive again.
    for _ in 0..5 {
        let batch = stream.batch().await.unwrap();
        assert_eq!(batch.worker_keys, ["s2"]);
        stream.extend(&batch);
    }
    // The callback runs on a thread. Waiting for it must not let the paused clock go on, at whose next
    // moment the other session is kept alive.
    assert_eq!((calls.recv().ok(), calls.recv().ok()), (Some(reason), None));
    assert_eq!(other.end_reason(), None);
    script.hears_nothing_for(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn each_key_of_a_batch_gets_the_answer_of_its_place() {
    let (mut script, mut streams) = Script::attachable();
    let pool = script.pool("");
    let mut sessions = Vec::new();
    for key in ["extended", "failed", "spent", "unavailable"] {
        sessions.push(script.session(&pool, key).await);
    }
    let mut stream = streams.recv().await.unwrap();
    let mut batch = stream.batch().await.unwrap();
    while batch.worker_keys.len() < 4 {
        stream.extend(&batch);
        // The keep-alives of the sessions are due at different times. A new stream names all of
        // them together.
        stream.say(Event::Draining(Draining {}));
        stream = next_stream(&mut script, &mut streams).await;
        batch = stream.batch().await.unwrap();
    }
    let place = |key: &str| batch.worker_keys.iter().position(|k| k == key).unwrap() as u32;
    let mut spent = RevokedPlace { place: place("spent"), ..RevokedPlace::default() };
    spent.message = "egress_bytes 10/10".into();
    spent.set_reason(Reason::BudgetSpent);
    let start = Instant::now();
    let before: Vec<u64> = sessions.iter().map(|session| session.keep_alives()).collect();
    stream.say(Event::Answer(BatchAnswer {
        batch: batch.batch,
        failed: vec![place("failed")],
        revoked: vec![spent],
        unavailable: vec![place("unavailable")],
    }));
    let quota = Error::QuotaExceeded { message: "egress_bytes 10/10".into() };
    assert_eq!(sessions[2].ended().await, quota);
    // The forgotten session is borrowed again, and named under its new key.
    script.borrow().await.grant("again");
    let mut seen = BTreeSet::new();
    while !(seen.contains("again") && seen.contains("unavailable")) {
        let batch = stream.batch().await.unwrap();
        seen.extend(batch.worker_keys.iter().cloned());
        stream.extend(&batch);
    }
    assert!(start.elapsed() <= 2 * SECOND, "{:?}", start.elapsed());
    assert!(sessions[0].keep_alives() > before[0]);
    assert_eq!(&*sessions[1].key(), "again");
    assert!([0, 1, 3].iter().all(|live| sessions[*live].end_reason().is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_ends_nothing_and_what_is_due_goes_by_calls_until_it_is_back() {
    let (mut script, mut streams) = Script::attachable();
    let (_pool, session, mut stream) = attached(&mut script, &mut streams, "").await;
    let batch = stream.batch().await.unwrap();
    assert_eq!(batch.worker_keys, ["s"]);
    let broken = Instant::now();
    stream.fail(Status::unavailable("going away"));
    let beat = script.keep_alive().await;
    assert_eq!((&*beat.message.worker_key, beat.at), ("s", broken));
    beat.extend();
    let mut stream = next_stream(&mut script, &mut streams).await;
    assert!(broken.elapsed() <= SECOND && broken.elapsed() >= SECOND / 2);
    // The new stream must name the session, or the server would push nothing about it.
    let batch = stream.batch().await.unwrap();
    assert_eq!(batch.worker_keys, ["s"]);
    assert!(broken.elapsed() <= SECOND);
    stream.extend(&batch);
    stream.say(disabled("s"));
    assert!(matches!(session.ended().await, Error::PermissionDenied { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_draining_server_gets_calls_and_a_new_stream_and_no_session_ends() {
    let (mut script, mut streams) = Script::attachable();
    let (_pool, session, mut stream) = attached(&mut script, &mut streams, "").await;
    let batch = stream.batch().await.unwrap();
    stream.extend(&batch);
    stream.say(Event::Draining(Draining {}));
    assert_eq!(stream.batch().await, None, "the client lets go of the stream");
    let start = Instant::now();
    let mut stream = next_stream(&mut script, &mut streams).await;
    assert!(start.elapsed() <= SECOND);
    let batch = stream.batch().await.unwrap();
    stream.extend(&batch);
    assert_eq!(session.end_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_owes_an_answer_for_too_long_is_dropped_and_its_keys_tried_by_calls() {
    let (mut script, mut streams) = Script::attachable();
    let (_pool, session, mut silent) = attached(&mut script, &mut streams, "").await;
    let sent = Instant::now();
    let batch = silent.batch().await.unwrap();
    assert_eq!(batch.worker_keys, ["s"]);
    // From now on, the server accepts no other stream.
    drop(streams);
    let beat = script.keep_alive().await;
    assert!(sent.elapsed() >= 5 * SECOND && sent.elapsed() <= 7 * SECOND, "{:?}", sent.elapsed());
    beat.extend();
    assert_eq!(silent.batch().await, None);
    assert_eq!(session.end_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn a_server_without_the_stream_gets_every_keep_alive_by_a_call_of_its_own() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let mut last = Instant::now();
    for _ in 0..60 {
        let beat = script.keep_alive().await;
        assert!(beat.at - last <= (20 * SECOND).mul_f64(1.06), "{:?}", beat.at - last);
        last = beat.at;
        beat.extend();
    }
    assert_eq!(session.end_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_batch_that_does_not_exist_breaks_the_stream_and_ends_nothing() {
    for (offset, failed) in [(77, vec![]), (0, vec![9])] {
        let (mut script, mut streams) = Script::attachable();
        let (_pool, session, mut stream) = attached(&mut script, &mut streams, "").await;
        let batch = stream.batch().await.unwrap();
        let answer = BatchAnswer { batch: batch.batch + offset, failed, ..Default::default() };
        stream.say(Event::Answer(answer));
        assert_eq!(stream.batch().await, None);
        let _again = next_stream(&mut script, &mut streams).await;
        assert_eq!(session.end_reason(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_return_waits_for_the_batch_its_key_is_in_and_a_closed_pool_ends_its_stream() {
    let (mut script, mut streams) = Script::attachable();
    let (pool, session, mut stream) = attached(&mut script, &mut streams, "").await;
    let batch = stream.batch().await.unwrap();
    assert_eq!(batch.worker_keys, ["s"]);
    let mut release = session.release();
    script.hears_nothing_for(SECOND).await;
    stream.extend(&batch);
    tokio::select! {
        back = script.give_back() => back.take(),
        outcome = &mut release => panic!("nobody answered: {outcome:?}"),
    }
    assert!(release.await.is_ok());
    let report = pool.close(SECOND).await;
    assert_eq!(report.not_returned, 0);
    assert_eq!(stream.batch().await, None);
}
