//! Pools whose runtime has shut down, and callers outside of every runtime.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use tgm_session::{CloseReport, Dsn, Error, Pool, Released, SessionRequest, TgmConfig, TgmPool};
use tokio::io::duplex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::real_server::{memory, pool, until_held};
use crate::scripted::{Script, stream};

const SOON: Duration = Duration::from_secs(40);
const HOUR: Duration = Duration::from_secs(3600);

const POLICIES: [&str; 2] = ["on-unavailable=deny", "on-unavailable=allow"];

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Waits for a future in a runtime, with a timeout.
fn soon<T>(runtime: &Runtime, what: impl Future<Output = T>) -> T {
    runtime.block_on(async { timeout(SOON, what).await.expect("it comes soon") })
}

/// Polls a future on this thread, outside of every runtime.
fn alone<T>(future: impl Future<Output = T>) -> T {
    struct Waking(Thread);
    impl Wake for Waking {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let (waker, start) = (Arc::new(Waking(thread::current())).into(), Instant::now());
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(start.elapsed() < SOON, "it comes soon");
        thread::park_timeout(SOON);
    }
}

fn is_outside(error: &Error) -> bool {
    matches!(error, Error::InvalidArgument { message, .. } if message.contains("tokio runtime"))
}

/// A request, and the calls of its callback.
fn noting() -> (SessionRequest, std::sync::mpsc::Receiver<Error>) {
    let (note, calls) = std::sync::mpsc::channel();
    let request = SessionRequest::new("t1r", "acme");
    (request.on_error(move |reason| note.send(reason).unwrap()), calls)
}

#[test]
fn everything_a_pool_holds_ends_with_its_runtime_and_nothing_fails_open() {
    let elsewhere = runtime();
    let server = elsewhere.block_on(memory());
    for policy in POLICIES {
        let home = runtime();
        let (request, calls) = noting();
        let (pool, session, worker, other) = soon(&home, async {
            let (pool, _) = pool(server.grpc_address(), policy);
            let session = pool.borrow(request).await.unwrap();
            let worker = session.borrow_worker("t2w", 2).await.unwrap();
            let other = pool.borrow(SessionRequest::new("t1r", "other")).await.unwrap();
            (pool, session, worker, other)
        });
        let waiting = elsewhere.spawn(session.ended());
        drop(home);
        assert_eq!(calls.recv_timeout(SOON), Ok(Error::Closed));

        soon(&elsewhere, async {
            assert_eq!(waiting.await.unwrap(), Error::Closed);
            assert_eq!((worker.ended().await, other.ended().await), (Error::Closed, Error::Closed));
            assert_eq!(pool.borrow(stream()).await.unwrap_err(), Error::Closed);
            assert_eq!(session.borrow_worker("t2w", 2).await.unwrap_err(), Error::Closed);
            assert_eq!(worker.release().await, Err(Error::Closed));
            drop(other);
            for _ in 0..2 {
                let report = CloseReport { returned: 0, not_returned: 3 };
                assert_eq!(pool.close(HOUR).await, report, "{policy}");
            }
            assert_eq!(session.release().await, Err(Error::Closed));
        });
        let stats = pool.stats();
        assert_eq!((stats.sessions_held, stats.workers_held, stats.attached), (0, 0, false));
        assert_eq!((stats.lost, stats.not_returned, stats.failed_open), (3, 3, 0));
    }
}

#[test]
fn calls_in_flight_when_the_runtime_of_a_pool_shuts_down_fail_as_closed() {
    let elsewhere = runtime();
    for policy in POLICIES {
        let home = runtime();
        let mut script = elsewhere.block_on(async { Script::new() });
        let pool = home.block_on(async { script.pool(&format!("borrow-timeout=1h&{policy}")) });
        let (release, asked) = soon(&elsewhere, async {
            let session = script.session(&pool, "s").await;
            let release = session.release();
            // The test answers neither the return nor the borrow.
            let mut asked = vec![script.give_back().await.message.worker_key];
            let borrowing = pool.clone();
            let borrow = tokio::spawn(async move { borrowing.borrow(stream()).await });
            asked.push(script.borrow().await.message.trace_id);
            let closing = pool.clone();
            let close = tokio::spawn(async move { closing.close(HOUR).await });
            while pool.borrow(stream()).now_or_never().is_none() {
                tokio::task::yield_now().await;
            }
            ((release, borrow, close), asked)
        });
        assert_eq!(asked, ["s", "trace-1"]);
        let (release, borrow, close) = release;
        drop(home);
        soon(&elsewhere, async {
            assert_eq!(release.await, Err(Error::Closed));
            assert_eq!(borrow.await.unwrap().unwrap_err(), Error::Closed);
            assert_eq!(close.await.unwrap().returned, 0, "{policy}");
        });
        assert_eq!(soon(&elsewhere, pool.close(HOUR)).returned, 0);
    }
}

#[test]
fn a_pool_made_in_a_runtime_that_is_gone_is_closed() {
    let elsewhere = runtime();
    let home = runtime();
    let handle = home.handle().clone();
    drop(home);
    let _home = handle.enter();
    let config = TgmConfig::from_dsn(&Dsn::parse("tgm://127.0.0.1:1").unwrap()).unwrap();
    let pool = Pool::new(Arc::new(TgmPool::connect(&config).unwrap()));
    assert_eq!(soon(&elsewhere, pool.borrow(stream())).unwrap_err(), Error::Closed);
    assert_eq!(soon(&elsewhere, pool.close(HOUR)), CloseReport::default());
}

/// A metrics recorder that panics, in the task of the pool that reports to it.
struct Panics;

impl Recorder for Panics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        panic!("in a recorder")
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        panic!("in a recorder")
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        panic!("in a recorder")
    }
}

#[test]
fn a_panic_in_the_task_of_a_pool_closes_the_pool() {
    let elsewhere = runtime();
    let server = elsewhere.block_on(memory());
    let home = Builder::new_current_thread().enable_all().build().unwrap();
    let (request, calls) = noting();
    metrics::with_local_recorder(&Panics, || {
        soon(&home, async {
            let (pool, _) = pool(server.grpc_address(), "on-unavailable=allow");
            let session = pool.borrow(request).await.unwrap();
            assert_eq!(session.ended().await, Error::Closed);
            assert_eq!(calls.recv_timeout(SOON), Ok(Error::Closed));
            assert_eq!(pool.borrow(stream()).await.unwrap_err(), Error::Closed);
            assert_eq!(session.release().await, Err(Error::Closed));
            assert_eq!(pool.close(HOUR).await, CloseReport { returned: 0, not_returned: 1 });
        });
    });
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_the_application_connects_is_a_failed_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let (pipes, mut made) = mpsc::unbounded_channel();
    let connect = {
        let attempts = attempts.clone();
        move || {
            assert!(attempts.fetch_add(1, Ordering::Relaxed) > 0, "the first attempt");
            let (near, far) = duplex(1024);
            pipes.send(far).unwrap();
            async { Ok::<_, io::Error>(near) }
        }
    };
    let dsn = Dsn::parse("tgm://here?plaintext=true&borrow-timeout=2s").unwrap();
    let config = TgmConfig::from_dsn(&dsn).unwrap();
    let pool = Pool::new(Arc::new(TgmPool::with_connector(&config, connect).unwrap()));
    let refused = pool.borrow(stream()).await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable { .. }), "{refused}");
    assert!(made.recv().await.is_some() && attempts.load(Ordering::Relaxed) > 1);
}

#[test]
fn outside_of_a_runtime_a_borrow_is_an_error_and_a_return_works() {
    let elsewhere = runtime();
    let server = elsewhere.block_on(memory());
    let config = TgmConfig::from_dsn(&Dsn::parse("tgm://127.0.0.1:1").unwrap()).unwrap();
    assert!(is_outside(&TgmPool::connect(&config).unwrap_err()));
    assert!(is_outside(&alone(tgm_session::connect("tgm://127.0.0.1:1")).unwrap_err()));

    let home = runtime();
    let (pool, plugin, session, worker) = soon(&home, async {
        let (pool, plugin) = pool(server.grpc_address(), "");
        let session = pool.borrow(stream()).await.unwrap();
        let worker = session.borrow_worker("t2w", 2).await.unwrap();
        (pool, plugin, session, worker)
    });
    assert!(is_outside(&alone(pool.borrow(stream())).unwrap_err()));
    assert!(is_outside(&alone(session.borrow_worker("t2w", 2)).unwrap_err()));
    assert!(is_outside(&alone(plugin.state("t1r", "acme")).unwrap_err()));
    // A borrow that began inside of a runtime fails outside of it, too, and leaves no lease behind.
    let mut borrow = Box::pin(pool.borrow(stream()));
    assert!(home.block_on(async { (&mut borrow).now_or_never() }).is_none());
    assert!(is_outside(&alone(borrow).unwrap_err()));
    soon(&home, until_held(&plugin, (1, 1)));

    assert_eq!(alone(worker.release()), Ok(Released::Returned));
    drop(session);
    soon(&home, until_held(&plugin, (0, 0)));
    let held = soon(&home, pool.borrow(stream())).unwrap();
    let CloseReport { returned, not_returned } = alone(pool.close(HOUR));
    assert_eq!(returned + not_returned, 1);
    assert_eq!(alone(held.ended()), Error::Closed);
    soon(&home, until_held(&plugin, (0, 0)));
}

#[test]
fn a_pool_of_this_process_needs_no_runtime() {
    let pool = alone(tgm_session::connect("local://?max_sessions=1")).unwrap();
    let session = alone(pool.borrow(stream())).unwrap();
    assert!(alone(pool.borrow(stream())).is_err());
    let worker = alone(session.borrow_worker("t2w", 1)).unwrap();
    assert_eq!(alone(worker.release()), Ok(Released::Returned));
    assert_eq!(alone(pool.close(HOUR)), CloseReport { returned: 1, not_returned: 0 });
    assert_eq!(alone(session.ended()), Error::Closed);
}
