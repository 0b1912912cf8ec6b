//! A plugin for your own URL scheme: `permits://` limits the streams of all organizations together.
//!
//! The library provides the guards, the callbacks and the trace ids. A plugin provides the five methods
//! of [`SessionPool`].
//!
//! ```text
//! cargo run -p tgm-session --example own_scheme
//! cargo run -p tgm-session --example own_scheme 'permits://?streams=3'
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tgm_session::{
    BoxFuture, CloseReport, Dsn, Error, Lease, Registry, Release, Released, Scope, SessionPool,
    SessionRequest, WorkerRequest,
};

/// Allows `streams` sessions at once, for all organizations together, and any number of workers.
#[derive(Debug)]
struct Permits {
    streams: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last number used; numbers are never used again.
    numbers: u64,
    sessions: HashMap<u64, Arc<Lease>>,
    closed: bool,
}

impl Permits {
    fn from_dsn(dsn: &Dsn) -> Result<Self, Error> {
        let mut parameters = dsn.parameters();
        let streams = parameters.count(&["streams"])?.unwrap_or(2);
        if streams == 0 {
            return Err(parameters.wrong("streams", "lets nobody run"));
        }
        parameters.finish()?; // refuses every other parameter by its name
        Ok(Self { streams, state: Mutex::default() })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}

impl SessionPool for Permits {
    fn borrow_session(&self, request: SessionRequest) -> BoxFuture<'_, Result<Arc<Lease>, Error>> {
        Box::pin(async move {
            let mut state = self.state();
            if state.closed {
                return Err(Error::Closed);
            }
            let (active, max) = (state.sessions.len() as u64, self.streams);
            if active >= max {
                let scope = Scope::Pool;
                return Err(Error::ConcurrentStreamLimitExceeded { active, max, scope });
            }
            state.numbers += 1;
            let number = state.numbers;
            let lease = Arc::new(Lease::of_session(number, format!("permit-{number}"), request));
            state.sessions.insert(number, lease.clone());
            Ok(lease)
        })
    }

    fn borrow_worker<'a>(
        &'a self,
        session: &'a Lease,
        request: WorkerRequest,
    ) -> BoxFuture<'a, Result<Arc<Lease>, Error>> {
        Box::pin(async move {
            let mut state = self.state();
            if !state.sessions.contains_key(&session.number()) {
                return Err(Error::SessionNotFound);
            }
            state.numbers += 1;
            let key = format!("{}-{}", session.key(), state.numbers);
            Ok(Arc::new(Lease::of_worker(state.numbers, key, session, request)))
        })
    }

    fn release_session(&self, session: &Lease, _minimal_life: Option<Duration>) -> Release {
        let held = self.state().sessions.remove(&session.number());
        Release::known(Ok(held.map_or(Released::Missing, |_| Released::Returned)))
    }

    fn release_worker(&self, _worker: &Lease, _minimal_life: Option<Duration>) -> Release {
        Release::known(Ok(Released::Returned))
    }

    fn close(&self, _deadline: Duration) -> BoxFuture<'_, CloseReport> {
        Box::pin(async move {
            let held: Vec<Arc<Lease>> = {
                let mut state = self.state();
                state.closed = true;
                state.sessions.drain().map(|(_, lease)| lease).collect()
            };
            // The lock is free here, because code that waits for the end may call the pool at once.
            held.iter().for_each(|lease| {
                lease.end(Error::Closed);
            });
            CloseReport { returned: held.len() as u64, not_returned: 0 }
        })
    }
}

/// The schemes of the library and `permits`.
fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register("permits", |dsn| async move {
        Ok(Arc::new(Permits::from_dsn(&dsn)?) as Arc<dyn SessionPool>)
    });
    registry
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "permits://".into());
    story(&url).await
}

async fn story(url: &str) -> Result<(), Error> {
    let pool = registry().connect(url).await?;
    let mut streams = Vec::new();
    let refused = loop {
        match pool.borrow(SessionRequest::new("blocks", "acme")).await {
            Ok(session) => streams.push(session),
            Err(refused) => break refused,
        }
    };
    println!("{} streams run; one more is refused: {refused}", streams.len());

    let first = streams.swap_remove(0);
    let worker = first.borrow_worker("jobs", 4).await?;
    println!("a worker under the first session: {:?}", worker.ids());
    drop((worker, first));
    let again = pool.borrow(SessionRequest::new("blocks", "umbra")).await?;
    println!("a stream ends, and {} gets its slot", again.ids().organization);

    let report = pool.close(Duration::from_secs(1)).await;
    println!("closed: {} returned; the stream is told: {}", report.returned, again.ended().await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use tgm_session::Error;

    use super::{registry, story};

    #[tokio::test]
    async fn the_example_runs() {
        story("permits://?streams=3").await.unwrap();
        story("local://?max_sessions=2").await.unwrap();
    }

    #[tokio::test]
    async fn an_invalid_url_is_refused_and_the_error_says_why() {
        for (url, about) in [
            ("permits://?streams=0", "`streams=0`: `0` lets nobody run"),
            ("permits://?stream=1", "`stream`, which permits:// does not know"),
            ("permit://", "known: local, permits, tgm"),
        ] {
            let error = registry().connect(url).await.unwrap_err();
            assert!(matches!(error, Error::InvalidArgument { .. }));
            assert!(error.to_string().contains(about), "{error}");
        }
    }
}
