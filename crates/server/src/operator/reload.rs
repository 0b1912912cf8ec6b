//! The policy file, while the server runs: when it changes, when a signal or an operator asks.

use std::io;
use std::sync::Arc;

use tokio::time::MissedTickBehavior;

use super::changes::Doing;
use super::{By, Ends, Operator, OperatorError};
use crate::admin::api::model::{Done, PolicyStatus};
use crate::error::Error;
use crate::policy::{Loaded, Policy, PolicyFile, Warning};
use crate::serve::blocking;
use crate::settings::Given;
use crate::store::{Store as _, Unavailable};
use crate::watch::{self, Digest, LOOK_EVERY, Watched};

/// What was found in the file by somebody who looked already.
type Found = io::Result<Vec<u8>>;

/// How the policy file is watched.
struct Watch {
    watched: Watched,
    /// Whether the last load found the store too busy to end leases, and has to be done again.
    again: bool,
}

impl Watch {
    fn new(file: &PolicyFile) -> Self {
        let watched = Watched::new([(file.path().to_owned(), file.digest())]);
        Self { watched, again: false }
    }
}

impl Operator {
    /// Loads the policy file again, whether it changed or not, and puts it into force.
    ///
    /// Leases that it does not allow end at once; lowered limits end nobody; overrides stay in force
    /// on top of it. A file that is not sound, is gone or would open the port to everybody is refused:
    /// the policy in force stays, and the reason is kept in the [status](Operator::policy_status).
    /// Settings in its `[server]` section that are not those of the start are warned about: they
    /// need a restart. Cancellation: the file is loaded all the same.
    ///
    /// # Errors
    ///
    /// [`OperatorError::Conflict`] when the server was started without a file, or the file is
    /// refused: with file, line, column and reason. After [`OperatorError::Unavailable`] the policy
    /// is in force, and leases may live on that it does not allow.
    pub async fn reload(self: &Arc<Self>, by: By<'_>) -> Result<Done, OperatorError> {
        self.load(Doing::try_from(by)?, None).await
    }

    /// Looks at the policy file from time to time, and loads it when it says something else. Runs
    /// until it is dropped; without a file it ends at once.
    pub(crate) async fn watch(self: Arc<Self>) {
        let Some(mut watch) = self.file.as_ref().map(Watch::new) else { return };
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            watch = self.look(watch).await;
        }
    }

    /// Looks once.
    async fn look(self: &Arc<Self>, watch: Watch) -> Watch {
        let Watch { mut watched, again } = watch;
        let (watched, found) = blocking(move || {
            let found = watched.changed();
            (watched, found)
        })
        .await;
        let found = found.and_then(|mut files| files.pop());
        let is_news = found.as_ref().is_some_and(|found| !self.has_read(found));
        if !is_news && !again {
            return Watch { watched, again };
        }
        let doing = Doing { from: "file".into(), note: "".into() };
        let loaded = self.load(doing, found.filter(|_| is_news)).await;
        // A refused file was told about, and is looked at again when it changes.
        let again = loaded == Err(OperatorError::Unavailable(Unavailable::Overloaded));
        Watch { watched, again }
    }

    /// Whether the file was read as it is already: at a signal, say.
    fn has_read(&self, found: &Found) -> bool {
        let read = self.state.lock().read;
        found.as_ref().is_ok_and(|contents| read == Some(Digest::of(contents)))
    }

    async fn load(
        self: &Arc<Self>,
        doing: Doing,
        found: Option<Found>,
    ) -> Result<Done, OperatorError> {
        let operator = self.clone();
        self.change(async move {
            let _changing = operator.changing.lock().await;
            let loaded = operator.load_now(doing, found).await;
            match &loaded {
                Ok(_) => {}
                Err(OperatorError::Unavailable(error)) => tracing::error!(
                    %error,
                    "the policy file is in force, but leases that it does not allow may live on"
                ),
                Err(error) => tracing::error!("the policy file was not loaded: {error}"),
            }
            loaded
        })
        .await
    }

    async fn load_now(&self, doing: Doing, found: Option<Found>) -> Result<Done, OperatorError> {
        let Some(started_with) = &self.file else {
            let problem = "there is no policy file: the server was started without one";
            return Err(OperatorError::Conflict(problem.into()));
        };
        let Loaded { policy, server, warnings, .. } = match self.read(started_with, found).await {
            Ok(loaded) => loaded,
            Err(error) => return Err(self.refuse(started_with, &error)),
        };
        let warnings = warned(started_with, &warnings, &server);
        let ended = self.put_into_force(policy, Ends::WhomItDoesNotAllow).await;
        self.metrics.reloads.applied.inc();
        let path = started_with.path().display().to_string();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        self.tell(|status| PolicyStatus {
            file: Some(path.clone()),
            loaded_at: self.now().as_unix(),
            refused: None,
            warnings,
            ..status
        });
        let action = format!("loaded the policy file {path}");
        let mut entry = self.entry(doing, action);
        entry.ended = *ended.as_ref().unwrap_or(&0) as u64;
        // The file itself is what lasts: it is in force even when the audit list cannot be written.
        let recorded = self.store.record(None, entry.clone()).await;
        ended?;
        entry.number = recorded?;
        Ok(self.told(entry))
    }

    /// Reads the file, unless that was done, and lays the overrides over what it says.
    async fn read(&self, file: &PolicyFile, found: Option<Found>) -> Result<Loaded, Error> {
        let (path, overrides) = (file.path().to_owned(), self.store.overrides());
        let read = blocking(move || {
            let found = found.unwrap_or_else(|| watch::read(&path));
            let digest = found.as_ref().ok().map(|contents| Digest::of(contents));
            let loaded = Policy::take_in(&path, found).map(|loaded| {
                let policy = loaded.policy.with_overrides(&overrides);
                Loaded { policy, ..loaded }
            });
            (digest, loaded)
        });
        let (digest, loaded) = read.await;
        self.state.lock().read = digest;
        let loaded = loaded?;
        self.check_exposure(&loaded.policy)?;
        Ok(loaded)
    }

    /// Keeps and tells why the file is not in force.
    fn refuse(&self, file: &PolicyFile, error: &Error) -> OperatorError {
        self.metrics.reloads.refused.inc();
        let path = file.path().display().to_string();
        let mut problem = error.to_string();
        if !problem.contains(&path) {
            problem = format!("{path}: {problem}");
        }
        self.tell(|status| PolicyStatus { refused: Some(problem.clone()), ..status });
        OperatorError::Conflict(format!("{problem} (the policy in force stays)"))
    }
}

/// What to think about in a file that was loaded into a running server.
fn warned(started_with: &PolicyFile, warnings: &[Warning], server: &Given) -> Vec<String> {
    let changed = started_with.server().differing(server).into_iter().map(|setting| {
        let path = started_with.path().display();
        format!("{path}: {setting} in [server] is not what the server was started with: restart it")
    });
    warnings.iter().map(Warning::to_string).chain(changed).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use arc_swap::ArcSwap;

    use super::super::Parts;
    use super::*;
    use crate::admin::metrics::Metrics;
    use crate::clock::SystemClock;
    use crate::live::Live;
    use crate::refusals::Refusals;
    use crate::store::{Options, Recovered};

    fn operator(path: &Path) -> Arc<Operator> {
        let Loaded { policy, file, .. } = Policy::load(path).unwrap();
        let store = Recovered::memory(Options::default()).unwrap().resume().unwrap();
        let metrics = Arc::new(Metrics::new());
        let clock = Arc::new(SystemClock::new());
        let refusals = Arc::new(Refusals::new(clock.clone()));
        Arc::new(Operator::new(Parts {
            store: Arc::new(store),
            live: Arc::new(ArcSwap::from_pointee(Live::new(policy, &metrics, refusals))),
            metrics,
            clock,
            grpc_address: ([127, 0, 0, 1], 1).into(),
            anonymous: true,
            file,
        }))
    }

    #[tokio::test]
    async fn what_was_loaded_at_a_signal_is_not_loaded_again_by_the_watch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "[services.t1r]").unwrap();
        let operator = operator(&path);
        let mut watch = Watch::new(operator.file.as_ref().unwrap());
        let loads = || operator.metrics.reloads.applied.get();
        let look_often = async |mut watch: Watch| {
            for _ in 0..4 {
                watch = operator.look(watch).await;
            }
            watch
        };
        watch = look_often(watch).await;
        assert_eq!(loads(), 0, "nothing has changed");

        fs::write(&path, "[services.t2w]").unwrap();
        operator.reload(By { from: "signal", note: "" }).await.unwrap();
        watch = look_often(watch).await;
        assert_eq!(loads(), 1, "the watch found what the signal had loaded");

        fs::write(&path, "[services.t3x]").unwrap();
        watch = look_often(watch).await;
        assert_eq!(loads(), 2);
        assert!(operator.policy().has_entry("t3x"));

        // A refused file is told about once, until it changes.
        fs::write(&path, "[services.").unwrap();
        look_often(watch).await;
        assert_eq!((loads(), operator.metrics.reloads.refused.get()), (2, 1));
    }
}
