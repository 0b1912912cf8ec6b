use std::time::Duration;

use tgm_session::{Error, Scope, SessionPool as _};
use tokio::time::Instant;
use tonic::{Code, Status};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::{keep_alive_response, return_worker_response};

use crate::scripted::{Call, Script, answer_with_status, granted, stream, undecided};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_borrow_carries_its_ids_its_borrow_id_and_the_key_of_the_indexer() {
    let mut script = Script::new();
    let pool = script.pool("indexer-api-key=s3cret");
    assert!(!format!("{pool:?}").contains("s3cret"));
    let (session, asked) = tokio::join!(pool.borrow(stream()), async {
        let borrow = script.borrow().await;
        assert_eq!(borrow.header("x-api-key"), Some("s3cret"));
        let id = borrow.header("x-borrow-id").unwrap().to_owned();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        let message = borrow.message.clone();
        borrow.grant("s");
        message
    });
    assert_eq!((&*asked.service, &*asked.organization_id), ("t1r", "acme"));
    assert_eq!((&*asked.api_key_id, &*asked.trace_id), ("key-1", "trace-1"));
    assert_eq!(asked.max_worker_for_trace_id, 0);
    let session = session.unwrap();
    let (worker, asked) = tokio::join!(session.borrow_worker("t2w", 3), async {
        let borrow = script.borrow().await;
        let message = borrow.message.clone();
        borrow.grant("w");
        message
    });
    let worker = worker.unwrap();
    assert_eq!((&*asked.service, asked.max_worker_for_trace_id), ("t2w", 3));
    assert_eq!((&*asked.organization_id, &*asked.trace_id), ("acme", "trace-1"));
    for (ids, service) in [(session.ids(), "t1r"), (worker.ids(), "t2w")] {
        assert_eq!((&*ids.service, &*ids.organization), (service, "acme"));
        assert_eq!((&*ids.api_key, &*ids.trace), ("key-1", "trace-1"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_trace_has_a_random_one_that_its_workers_and_its_next_grant_share() {
    let mut script = Script::new();
    let pool = script.pool("");
    let mut traces = std::collections::BTreeSet::new();
    for none in ["", "0", "00000000000000000000000000000000"] {
        let request = tgm_session::SessionRequest::new("t1r", "acme").trace(none);
        let asked = async |script: &mut Script, key| {
            let borrow = script.borrow_amid_beats().await;
            let trace = borrow.message.trace_id.clone();
            borrow.grant(key);
            trace
        };
        let (session, trace) = tokio::join!(pool.borrow(request), asked(&mut script, "s"));
        let session = session.unwrap();
        assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(&*session.ids().trace, trace);
        let worker = session.borrow_worker("t2w", 2);
        let (worker, of_worker) = tokio::join!(worker, asked(&mut script, "w"));
        assert_eq!(of_worker, trace);
        drop(worker);
        script.give_back().await.take();

        script.keep_alive().await.say(keep_alive_response::Status::Failed);
        assert_eq!(asked(&mut script, "again").await, trace);
        assert_eq!(&*session.ids().trace, trace);
        drop(session);
        script.give_back().await.take();
        traces.insert(trace);
    }
    assert_eq!(traces.len(), 3);
    let session = script.session(&pool, "s").await;
    assert_eq!(&*session.ids().trace, "trace-1");
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_trace_has_a_random_one_without_guards_too() {
    let mut script = Script::new();
    let plugin = script.plugin("");
    let borrow = plugin.borrow_session(tgm_session::SessionRequest::new("t1r", "acme"));
    let (session, trace) = tokio::join!(borrow, async {
        let borrow = script.borrow().await;
        let trace = borrow.message.trace_id.clone();
        borrow.grant("s");
        trace
    });
    assert!(trace.len() == 32 && trace.bytes().all(|byte| byte.is_ascii_hexdigit()), "{trace}");
    assert_eq!(&*session.unwrap().ids().trace, trace);
}

#[tokio::test(start_paused = true)]
async fn a_borrow_answered_with_status_unset_is_an_error_and_its_key_is_given_back() {
    let mut script = Script::new();
    let pool = script.pool("");
    let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
        let unset = answer_with_status(BorrowStatus::Unset, "untracked");
        script.borrow().await.answer(Ok(unset));
    });
    let refused = refused.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable { message, .. } if message.contains("unset")));
    let back = script.give_back().await;
    assert_eq!(back.message.worker_key, "untracked");
    back.take();
    script.hears_nothing_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_stays_a_quota_error_while_a_worker_is_borrowed() {
    let mut script = Script::new();
    let pool = script.pool("borrow-wait=1h");
    let session = script.session(&pool, "s").await;
    let (refused, ()) = tokio::join!(session.borrow_worker("t2w", 3), async {
        script.borrow().await.fail(Status::resource_exhausted("egress_bytes 7/7 until June"));
    });
    let refused = refused.unwrap_err();
    assert_eq!(refused, Error::QuotaExceeded { message: "egress_bytes 7/7 until June".into() });
    assert!(!refused.is_retryable());
    assert_eq!(Status::from(refused).code(), Code::ResourceExhausted);
}

#[tokio::test(start_paused = true)]
async fn the_refusal_of_a_full_organization_has_its_scope_and_shows_active_before_max() {
    let mut script = Script::new();
    let pool = script.pool("");
    let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
        let mut full = answer_with_status(BorrowStatus::ResourceExhausted, "");
        full.metadata_mut().insert("x-denied-scope", "organization".parse().unwrap());
        full.metadata_mut().insert("x-denied-active", "7".parse().unwrap());
        full.metadata_mut().insert("x-denied-max", "10".parse().unwrap());
        script.borrow().await.answer(Ok(full));
    });
    let refused = refused.unwrap_err();
    assert_eq!(
        refused,
        Error::ConcurrentStreamLimitExceeded { active: 7, max: 10, scope: Scope::Organization }
    );
    assert_eq!(refused.to_string(), "Concurrent stream limit exceeded (active sessions: 7/10)");
    script.hears_nothing_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_transient_fault_a_borrow_is_retried_with_the_same_id_within_the_timeout() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let start = Instant::now();
    let (worker, names) = tokio::join!(session.borrow_worker("t2w", 3), async {
        let mut names = Vec::new();
        for status in [Status::unavailable("draining"), Status::aborted(""), Status::internal("")] {
            let borrow = script.borrow_amid_beats().await;
            names.push(borrow.header("x-borrow-id").unwrap().to_owned());
            borrow.fail(status);
        }
        let borrow = script.borrow_amid_beats().await;
        names.push(borrow.header("x-borrow-id").unwrap().to_owned());
        borrow.grant("w");
        names
    });
    assert_eq!(&*worker.unwrap().key(), "w");
    assert!(names.iter().all(|name| *name == names[0]));
    assert!(start.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_the_server_cannot_decide_on_is_asked_for_again_inside_of_the_timeout() {
    let mut script = Script::new();
    let pool = script.pool("");
    let session = script.session(&pool, "s").await;
    let start = Instant::now();
    let (worker, names) = tokio::join!(session.borrow_worker("t2w", 3), async {
        let mut names = Vec::new();
        for answer in [undecided(), undecided(), undecided(), granted("w")] {
            let borrow = script.borrow_amid_beats().await;
            names.push(borrow.header("x-borrow-id").unwrap().to_owned());
            borrow.answer(Ok(answer));
        }
        names
    });
    assert_eq!(&*worker.unwrap().key(), "w");
    assert!(names.iter().all(|name| *name == names[0]));
    assert!(start.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_the_server_never_decides_on_is_unavailable_and_no_limit_to_wait_for() {
    let mut script = Script::new();
    let pool = script.pool("borrow-timeout=2s&borrow-wait=1h");
    let session = script.session(&pool, "s").await;
    let start = Instant::now();
    let mut name = None;
    let refused = tokio::select! {
        refused = session.borrow_worker("t2w", 3) => refused.unwrap_err(),
        () = async {
            loop {
                let borrow = script.borrow_amid_beats().await;
                name = borrow.header("x-borrow-id").map(str::to_owned);
                borrow.answer(Ok(undecided()));
            }
        } => unreachable!(),
    };
    assert!(start.elapsed() <= 2 * SECOND, "{:?}", start.elapsed());
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused:?}");
    assert!(refused.is_retryable());
    // The server may hold a lease, so the client returns the borrow by its borrow id.
    let back = loop {
        match script.call().await {
            Call::Return(back) => break back,
            Call::KeepAlive(beat) => beat.extend(),
            Call::Borrow(_) => panic!("it is over"),
        }
    };
    assert_eq!(back.header("x-borrow-id"), name.as_deref());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_tried_again() {
    let mut script = Script::new();
    let pool = script.pool("");
    for (status, kind) in [
        (Status::permission_denied("disabled"), Code::PermissionDenied),
        (Status::unauthenticated("no key"), Code::Unauthenticated),
        (Status::invalid_argument("service `x` is unknown"), Code::InvalidArgument),
        (Status::resource_exhausted("spent"), Code::ResourceExhausted),
        (Status::unimplemented("no such service"), Code::Unavailable),
    ] {
        let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
            script.borrow().await.fail(status);
        });
        assert_eq!(Status::from(refused.unwrap_err()).code(), kind);
        script.hears_nothing_for(60 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_borrow_whose_deadline_passes_fails_on_time_and_is_returned_by_its_id() {
    let mut script = Script::new();
    let pool = script.pool("borrow-timeout=2s");
    let start = Instant::now();
    let (refused, silent) = tokio::join!(pool.borrow(stream()), script.borrow());
    assert_eq!(start.elapsed(), 2 * SECOND);
    assert!(matches!(refused.unwrap_err(), Error::Unavailable { .. }));
    let back = script.give_back().await;
    assert_eq!(back.message.worker_key, "");
    assert_eq!(back.header("x-borrow-id"), silent.header("x-borrow-id"));
    back.say(return_worker_response::Status::MissingKey);
    // An answer that arrives now is ignored, because its deadline has passed.
    assert!(!silent.is_waited_for());
    silent.grant("late");
    script.hears_nothing_for(120 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_borrow_reports_the_last_fault_and_not_the_timeout_of_its_last_try() {
    let mut script = Script::new();
    let pool = script.pool("borrow-timeout=2s");
    let start = Instant::now();
    let refused = tokio::select! {
        refused = pool.borrow(stream()) => refused.unwrap_err(),
        () = async {
            let mut silent = Vec::new();
            loop {
                let borrow = script.borrow().await;
                if start.elapsed() < SECOND {
                    borrow.fail(Status::unavailable("the store failed"));
                } else {
                    silent.push(borrow);
                }
            }
        } => unreachable!(),
    };
    assert_eq!(start.elapsed(), 2 * SECOND);
    assert_eq!(refused, Error::unavailable("the store failed"));
}

#[tokio::test(start_paused = true)]
async fn a_borrow_that_its_caller_drops_is_returned_by_its_id() {
    let mut script = Script::new();
    let pool = script.pool("");
    let asked = tokio::select! {
        _ = pool.borrow(stream()) => panic!("nobody granted it"),
        asked = script.borrow() => asked,
    };
    let back = script.give_back().await;
    assert_eq!(back.header("x-borrow-id"), asked.header("x-borrow-id"));
    back.take();
    script.hears_nothing_for(120 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_borrow_is_returned_by_its_id_after_a_lost_answer_and_a_refusal_and_not_after_a_grant() {
    let mut script = Script::new();
    let pool = script.pool("");
    // The first answer is lost. The second one grants the same lease.
    let (session, ()) = tokio::join!(pool.borrow(stream()), async {
        script.borrow().await.fail(Status::unavailable("reset"));
        script.borrow().await.grant("s");
    });
    assert_eq!(&*session.unwrap().key(), "s");
    assert_eq!(script.give_back().await.message.worker_key, "s");

    // The first answer is lost, and the second one is a refusal. The first try may have taken a
    // lease, so the client returns it.
    let (refused, ()) = tokio::join!(pool.borrow(stream()), async {
        script.borrow().await.fail(Status::unavailable("reset"));
        script.borrow().await.fail(Status::permission_denied("disabled"));
    });
    assert!(matches!(refused.unwrap_err(), Error::PermissionDenied { .. }));
    loop {
        if let Call::Return(back) = script.call().await
            && back.header("x-borrow-id").is_some()
        {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_is_unavailable_within_the_timeout() {
    let mut script = Script::new();
    script.set_reachable(false);
    let pool = script.pool("borrow-timeout=3s");
    let start = Instant::now();
    let refused = pool.borrow(stream()).await.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable { .. }) && refused.is_retryable());
    assert!((2 * SECOND..=3 * SECOND).contains(&start.elapsed()), "{:?}", start.elapsed());
    // Nothing was sent, so there is nothing to return when the server is reachable again.
    script.set_reachable(true);
    script.hears_nothing_for(120 * SECOND).await;
    drop(script.session(&pool, "s").await);
}

#[tokio::test(start_paused = true)]
async fn a_borrow_waits_while_a_limit_is_reached_as_long_as_the_url_says() {
    let mut script = Script::new();
    let pool = script.pool("borrow-wait=30s");
    let start = Instant::now();
    let full = || Ok(answer_with_status(BorrowStatus::ResourceExhausted, ""));
    let mut names = std::collections::BTreeSet::new();
    // A slot becomes free after a while.
    let (session, ()) = tokio::join!(pool.borrow(stream()), async {
        for _ in 0..10 {
            let borrow = script.borrow().await;
            names.insert(borrow.header("x-borrow-id").unwrap().to_owned());
            borrow.answer(full());
        }
        script.borrow().await.answer(Ok(granted("s")));
    });
    assert!(session.is_ok());
    assert_eq!(names.len(), 10, "a refused borrow is over: the next one has its own name");
    assert!(start.elapsed() > SECOND && start.elapsed() < 15 * SECOND);

    // No slot becomes free.
    let start = Instant::now();
    let refused = tokio::select! {
        refused = pool.borrow(stream()) => refused.unwrap_err(),
        () = async { loop {
            match script.call().await {
                Call::Borrow(borrow) => borrow.answer(full()),
                Call::KeepAlive(beat) => beat.extend(),
                Call::Return(_) => panic!("nothing was released"),
            }
        } } => unreachable!(),
    };
    assert!(matches!(refused, Error::ConcurrentStreamLimitExceeded { .. }));
    assert!(start.elapsed() >= 30 * SECOND && start.elapsed() < 31 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_limit_per_organization_of_the_url_applies_and_costs_no_call() {
    for name in ["default-max-request-per-organization", "default-max-request-per-user"] {
        let mut script = Script::new();
        let pool = script.pool(&format!("{name}=1"));
        let session = script.session(&pool, "s").await;
        let full = Error::ConcurrentStreamLimitExceeded { active: 1, max: 1, scope: Scope::Pool };
        assert_eq!(pool.borrow(stream()).await.unwrap_err(), full);
        let (_worker, other) = (
            script.worker(&session, "w").await,
            script.grant("o", pool.borrow(tgm_session::SessionRequest::new("t1r", "umbra"))).await,
        );
        assert!(other.is_ok());
        drop(session);
        script.give_back().await.take();
        script.give_back().await.take();
        let _next = script.session(&pool, "s2").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_refuses_every_session_and_costs_no_call() {
    for name in ["default-max-request-per-organization", "default-max-request-per-user"] {
        for more in ["", "&on-unavailable=allow"] {
            let mut script = Script::new();
            let pool = script.pool(&format!("{name}=0{more}"));
            let nobody =
                Error::ConcurrentStreamLimitExceeded { active: 0, max: 0, scope: Scope::Pool };
            assert_eq!(pool.borrow(stream()).await.unwrap_err(), nobody);
            assert_eq!(pool.stats().denied.sessions_limit, 1);
            script.hears_nothing_for(60 * SECOND).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn invalid_ids_are_refused_without_a_call() {
    let mut script = Script::new();
    let pool = script.pool("");
    let long = "x".repeat(5000);
    for request in [
        tgm_session::SessionRequest::new("", "acme"),
        tgm_session::SessionRequest::new("t1r", "acme").trace(long.clone()),
    ] {
        let refused = pool.borrow(request).await.unwrap_err();
        assert!(matches!(refused, Error::InvalidArgument { .. }), "{refused}");
    }
    let session = script.session(&pool, "s").await;
    assert!(session.borrow_worker(long, 1).await.is_err());
    let none = session.borrow_worker("t2w", 0).await.unwrap_err();
    assert!(matches!(none, Error::WorkersLimitExceeded { max: 0, .. }));
}
