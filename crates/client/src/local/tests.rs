use proptest::prelude::*;

use super::*;
use crate::pool::Pool;
use crate::{Session, Worker};

async fn pool(url: &str) -> Pool {
    crate::connect(url).await.unwrap()
}

fn stream(organization: &str) -> SessionRequest {
    SessionRequest::new("t1r", organization)
}

#[tokio::test]
async fn sessions_are_counted_across_services_and_per_organization() {
    let pool = pool("local://?max_sessions=3&max_sessions_per_organization=2").await;
    let _one = pool.borrow(SessionRequest::new("t1r", "acme")).await.unwrap();
    let _two = pool.borrow(SessionRequest::new("other", "acme")).await.unwrap();
    let full = |active, max, scope| Error::ConcurrentStreamLimitExceeded { active, max, scope };
    assert_eq!(pool.borrow(stream("acme")).await.unwrap_err(), full(2, 2, Scope::Organization));
    let _three = pool.borrow(stream("umbra")).await.unwrap();
    assert_eq!(pool.borrow(stream("nadir")).await.unwrap_err(), full(3, 3, Scope::Pool));
}

#[tokio::test]
async fn guards_show_their_ids() {
    let pool = pool("local://").await;
    let request = stream("acme").api_key("key-1").trace("trace-1");
    let session = pool.borrow(request).await.unwrap();
    let worker = session.borrow_worker("t2w", 1).await.unwrap();
    let ids = |service: &str| Ids {
        service: service.into(),
        organization: "acme".into(),
        api_key: "key-1".into(),
        trace: "trace-1".into(),
    };
    assert_eq!((session.ids(), worker.ids()), (&ids("t1r"), &ids("t2w")));
}

#[tokio::test]
async fn workers_do_not_take_the_slots_of_streams() {
    let pool = pool("local://?max_sessions_per_organization=2&max_workers=5").await;
    let session = pool.borrow(stream("acme")).await.unwrap();
    let mut workers = Vec::new();
    for _ in 0..5 {
        workers.push(session.borrow_worker("t1r", 100).await.unwrap());
    }
    assert!(pool.borrow(stream("acme")).await.is_ok());
    let (active, max, scope) = (5, 5, Scope::Pool);
    assert_eq!(
        session.borrow_worker("t1r", 100).await.unwrap_err(),
        Error::WorkersLimitExceeded { active, max, scope }
    );
}

#[tokio::test]
async fn the_smaller_of_the_calls_and_the_pools_cap_on_workers_applies() {
    let pool = pool("local://?max_workers_per_session=2").await;
    let session = pool.borrow(stream("acme")).await.unwrap();
    let full = |active, max| Error::WorkersLimitExceeded { active, max, scope: Scope::Trace };
    assert_eq!(session.borrow_worker("t2w", 0).await.unwrap_err(), full(0, 0));
    let _one = session.borrow_worker("t2w", 1).await.unwrap();
    assert_eq!(session.borrow_worker("t2w", 1).await.unwrap_err(), full(1, 1));
    let _two = session.borrow_worker("t2w", 9).await.unwrap();
    assert_eq!(session.borrow_worker("t2w", 9).await.unwrap_err(), full(2, 2));
    // The workers of each session count separately, even if no trace was given.
    assert_eq!(session.ids().trace.len(), 32);
    let other = pool.borrow(stream("acme")).await.unwrap();
    assert!(other.borrow_worker("t2w", 1).await.is_ok());
}

#[tokio::test]
async fn the_workers_of_an_organization_are_counted_over_its_sessions() {
    let pool = pool("local://?max_workers_per_user=1").await;
    let (one, two) = (pool.borrow(stream("acme")).await, pool.borrow(stream("acme")).await);
    let _worker = one.as_ref().unwrap().borrow_worker("t2w", 9).await.unwrap();
    let (active, max, scope) = (1, 1, Scope::Organization);
    assert_eq!(
        two.as_ref().unwrap().borrow_worker("t2w", 9).await.unwrap_err(),
        Error::WorkersLimitExceeded { active, max, scope }
    );
}

#[tokio::test]
async fn keys_are_numbered_and_never_used_again() {
    let pool = pool("local://").await;
    let session = pool.borrow(stream("acme")).await.unwrap();
    assert_eq!(&*session.key(), "local-session-1");
    for key in ["local-session-1-w0001", "local-session-1-w0002"] {
        assert_eq!(&*session.borrow_worker("t2w", 1).await.unwrap().key(), key);
    }
    drop(session);
    let session = pool.borrow(stream("acme")).await.unwrap();
    assert_eq!(&*session.key(), "local-session-2");
    assert_eq!(&*session.borrow_worker("t2w", 1).await.unwrap().key(), "local-session-2-w0001");
}

#[tokio::test]
async fn a_dropped_session_frees_its_slot_and_ends_its_workers() {
    let pool = pool("local://?max_sessions=1&max_workers=1").await;
    let session = pool.borrow(stream("acme")).await.unwrap();
    let worker = session.borrow_worker("t2w", 1).await.unwrap();
    drop(session);
    assert_eq!(worker.ended().await, Error::SessionNotFound);
    let session = pool.borrow(stream("acme")).await.unwrap();
    let _other = session.borrow_worker("t2w", 1).await.unwrap();
    // The guard of the old worker has nothing left to return.
    assert_eq!(worker.release().await, Ok(Released::Missing));
    assert!(session.borrow_worker("t2w", 1).await.is_err());
}

#[tokio::test]
async fn releasing_what_the_pool_does_not_hold_is_answered_and_does_not_panic() {
    let pool = LocalPool::new(LocalConfig::default());
    let stranger = Lease::new(77, "never-granted", Ids::default(), None);
    assert_eq!(pool.release_session(&stranger, None).await, Ok(Released::Missing));
    assert_eq!(pool.release_worker(&stranger, None).await, Ok(Released::Missing));
    let lease = pool.borrow_session(stream("acme")).await.unwrap();
    assert_eq!(pool.release_session(&lease, None).await, Ok(Released::Returned));
    assert_eq!(pool.release_session(&lease, None).await, Ok(Released::Missing));
    let request = WorkerRequest::new("t2w", 1);
    assert_eq!(pool.borrow_worker(&lease, request).await.unwrap_err(), Error::SessionNotFound);
}

#[tokio::test]
async fn held_refused_and_returned_leases_are_counted() {
    let pool = pool("local://?max_sessions=1&max_workers=1").await;
    let session = pool.borrow(stream("acme")).await.unwrap();
    let worker = session.borrow_worker("t2w", 5).await.unwrap();
    assert!(pool.borrow(stream("acme")).await.is_err());
    assert!(session.borrow_worker("t2w", 5).await.is_err());
    assert!(pool.borrow(SessionRequest::new("", "acme")).await.is_err());
    let mut expected = PoolStats::default();
    (expected.sessions_held, expected.workers_held) = (1, 1);
    (expected.sessions_borrowed, expected.workers_borrowed) = (1, 1);
    (expected.denied.sessions_limit, expected.denied.workers_limit) = (1, 1);
    expected.denied.other = 1;
    assert_eq!(pool.stats(), expected);
    // The worker is returned with its session and counted once.
    drop((session, worker));
    (expected.sessions_held, expected.workers_held, expected.returned) = (0, 0, 2);
    assert_eq!(pool.stats(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_session_released_younger_than_its_minimal_life_counts_until_that_age() {
    let pool = pool("local://?max_sessions=1").await;
    let session = pool.borrow(stream("acme")).await.unwrap();
    let life = Duration::from_secs(60);
    assert_eq!(session.release_after(life).await, Ok(Released::Lingers));
    tokio::time::advance(life - Duration::from_millis(1)).await;
    assert!(pool.borrow(stream("acme")).await.is_err());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(pool.borrow(stream("acme")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_session_never_expires() {
    let pool = pool("local://?max_sessions=1").await;
    let session = pool.borrow(stream("acme")).await.unwrap();
    tokio::time::advance(Duration::from_secs(400 * 24 * 3600)).await;
    assert!(pool.borrow(stream("acme")).await.is_err());
    assert_eq!(session.release().await, Ok(Released::Returned));
}

#[tokio::test]
async fn a_closed_pool_refuses_and_tells_every_holder_once() {
    let pool = pool("local://").await;
    let (sender, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let request = stream("acme").on_error(move |reason| sender.send(reason).unwrap());
    let session = pool.borrow(request).await.unwrap();
    let worker = session.borrow_worker("t2w", 1).await.unwrap();
    let report = CloseReport { returned: 2, not_returned: 0 };
    assert_eq!(pool.close(Duration::ZERO).await, report);
    assert_eq!((session.ended().await, worker.ended().await), (Error::Closed, Error::Closed));
    assert_eq!((calls.recv().await, calls.recv().await), (Some(Error::Closed), None));
    assert_eq!(pool.borrow(stream("acme")).await.unwrap_err(), Error::Closed);
    assert_eq!(session.borrow_worker("t2w", 1).await.unwrap_err(), Error::Closed);
    drop((session, worker));
    assert_eq!(pool.close(Duration::ZERO).await, CloseReport::default());
}

#[tokio::test]
async fn ids_that_no_server_accepts_are_refused_locally_too() {
    let pool = pool("local://").await;
    let long = "x".repeat(257);
    let message = |error: Error| error.to_string();
    let anonymous = pool.borrow(stream("")).await.unwrap();
    assert_eq!(&*anonymous.ids().organization, "anonymous");
    assert!(message(pool.borrow(stream(&long)).await.unwrap_err()).contains("organization_id"));
    let request = SessionRequest::new("", "acme");
    assert!(message(pool.borrow(request).await.unwrap_err()).contains("service"));
    let session = pool.borrow(stream("acme")).await.unwrap();
    assert!(message(session.borrow_worker("", 1).await.unwrap_err()).contains("service"));
}

#[test]
fn every_parameter_is_read_under_its_name_of_today_and_its_old_one() {
    let read = |text: &str| LocalConfig::from_dsn(&Dsn::parse(text)?);
    assert_eq!(read("local://"), Ok(LocalConfig::default()));
    let all = LocalConfig {
        max_sessions: 1,
        max_sessions_per_organization: 2,
        max_workers: 3,
        max_workers_per_organization: 4,
        max_workers_per_session: 5,
    };
    for (sessions, workers) in [
        ("max_sessions_per_organization", "max_workers_per_organization"),
        ("max_sessions_per_user", "max_workers_per_user"),
    ] {
        let url = format!(
            "local://?max_sessions=1&{sessions}=2&max_workers=3&{workers}=4&max_workers_per_session=5"
        );
        assert_eq!(read(&url), Ok(all));
    }
    for (url, about) in [
        ("local://?max_session=1", "nearest is `max_sessions`"),
        ("local://?max_workers=many", "`max_workers=many`"),
        ("local://?max_workers=-1", "`max_workers=-1`"),
    ] {
        let message = read(url).unwrap_err().to_string();
        assert!(message.contains(about), "{message}");
    }
}

proptest! {
    /// After any order of borrows and drops, the pool holds exactly what the guards hold.
    #[test]
    fn the_pool_holds_what_its_guards_hold(steps in prop::collection::vec((0u8..4, 0usize..8), 1..80)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let plugin = Arc::new(LocalPool::new(LocalConfig {
                max_sessions: 4,
                max_sessions_per_organization: 3,
                max_workers: 6,
                ..LocalConfig::default()
            }));
            let pool = Pool::new(plugin.clone());
            let mut sessions: Vec<(Session, Vec<Worker>)> = Vec::new();
            for (step, pick) in steps {
                let at = pick % sessions.len().max(1);
                match step {
                    0 => sessions.extend(
                        pool.borrow(stream(["a", "b"][pick % 2])).await.map(|s| (s, Vec::new())),
                    ),
                    1 if !sessions.is_empty() => {
                        let (session, workers) = &mut sessions[at];
                        workers.extend(session.borrow_worker("t2w", 3).await);
                    }
                    2 if !sessions.is_empty() => drop(sessions.swap_remove(at).0),
                    3 if !sessions.is_empty() => drop(sessions[at].1.pop()),
                    _ => {}
                }
                let held = sessions.iter().map(|(_, workers)| 1 + workers.len()).sum::<usize>();
                let table = plugin.table.lock();
                assert_eq!((table.counts.ledger.len(), table.held.len()), (held, held));
                table.counts.ledger.audit().unwrap();
            }
        });
    }
}
