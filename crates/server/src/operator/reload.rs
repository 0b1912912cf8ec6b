//! The policy file and the files of keys that it names, while the server runs: when one of them
//! changes, when a signal or an operator asks.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use policy::Warning;
use policy::overrides::{AuditEntry, Overrides};
use store::{Enforced, Noted, Unavailable};
use tokio::time::MissedTickBehavior;

use super::changes::Doing;
use super::outcome::{Done, PolicyStatus};
use super::{By, Operator, OperatorError};
use crate::blocking::blocking;
use crate::config::Config;
use crate::config::Given;
use crate::config::watch::{self, Digest, LOOK_EVERY, Watched};
use crate::config::{Loaded, PolicyFile};
use crate::error::Error;
use crate::repeated::Repeated;

/// What was found in the files by somebody who looked already, the policy file first.
type Found = Vec<(PathBuf, io::Result<Vec<u8>>)>;

static NOT_LOADED: Repeated = Repeated::new();
static WARNED: Repeated = Repeated::new();

/// How the policy file is watched.
struct Watch {
    watched: Watched,
    /// Whether the last load found the store too busy to end leases, and has to be done again.
    again: bool,
}

impl Watch {
    fn new(file: &PolicyFile) -> Self {
        Self { watched: Watched::new(file.files().to_vec()), again: false }
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

    /// Looks at the policy file and those that it names from time to time, and loads it when one of
    /// them says something else. Runs until it is dropped; without a file it ends at once.
    pub(crate) async fn watch(self: Arc<Self>) {
        let Some(mut watch) = self.config.policy_file.as_ref().map(Watch::new) else { return };
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
        let read = self.state.lock().read.clone();
        if !watched.paths().iter().eq(read.iter().map(|(path, _)| path)) {
            watched = Watched::new(read);
        }
        let (watched, found) = blocking(move || {
            let found = watched.changed();
            (watched, found)
        })
        .await;
        let found = found.map(|files| watched.paths().iter().cloned().zip(files).collect());
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

    /// Whether the files were read as they are already: at a signal, say.
    fn has_read(&self, found: &Found) -> bool {
        let digest =
            |contents: &io::Result<Vec<u8>>| contents.as_ref().ok().map(|it| Digest::of(it));
        let found = found.iter().map(|(path, contents)| (path, digest(contents)));
        let read = &self.state.lock().read;
        found.eq(read.iter().map(|(path, digest)| (path, *digest)))
    }

    async fn load(
        self: &Arc<Self>,
        doing: Doing,
        found: Option<Found>,
    ) -> Result<Done, OperatorError> {
        let operator = self.clone();
        self.change(async move {
            let loaded = operator.load_now(doing, found).await;
            if let Err(error) = &loaded {
                let told = match error {
                    OperatorError::Unavailable(error) => format!(
                        "the policy file is in force, but leases that it does not allow may live \
                         on: {error}"
                    ),
                    error => format!("the policy file was not loaded: {error}"),
                };
                if let Some(times) = NOT_LOADED.count_of(&told) {
                    tracing::error!(times, "{told}");
                }
            }
            loaded
        })
        .await
    }

    async fn load_now(&self, doing: Doing, found: Option<Found>) -> Result<Done, OperatorError> {
        let Some(started_with) = &self.config.policy_file else {
            let problem = "there is no policy file: the server was started without one";
            return Err(OperatorError::Conflict(problem.into()));
        };
        let enforced = {
            let in_force = self.in_force.lock().await;
            let overrides = in_force.overrides.clone();
            let read = self.read(started_with, found, overrides).await;
            let Loaded { policy, server, warnings, .. } =
                read.map_err(|error| self.refuse(started_with, &error))?;
            let warnings = self.as_reported(&warnings).await;
            let warnings = warned(started_with, &warnings, &server);
            let live = self.put_into_force(policy).await;
            self.metrics.reloads.applied.inc();
            let path = started_with.path().display().to_string();
            if WARNED.count_of(&warnings.join("\n")).is_some() {
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
            }
            self.tell(|status| PolicyStatus {
                file: Some(path.clone()),
                loaded_at: self.now().as_unix(),
                refused: None,
                warnings,
                ..status
            });
            let entry = self.entry(doing, format!("loaded the policy file {path}"));
            // The file itself is what lasts: it is in force even when the audit list cannot be written.
            let enforced = self.store.enforce(&live.policy, Noted::Anew(entry.clone()));
            async move { enforced.await.map(|enforced| (enforced, entry)) }
        };
        let (Enforced { ended, entry: number }, entry) = enforced.await?;
        let entry = AuditEntry { number: number.unwrap_or(0), ended: ended as u64, ..entry };
        Ok(self.told(self.recorded(entry.number).unwrap_or(entry)))
    }

    /// Reads the files, as far as that was not done, and lays the overrides over what they say.
    async fn read(
        &self,
        file: &PolicyFile,
        found: Option<Found>,
        overrides: Arc<Overrides>,
    ) -> Result<Loaded, Error> {
        let path = file.path().to_owned();
        let read = blocking(move || {
            let mut found = found.unwrap_or_default();
            let mut read = |path: &Path| match found.iter().position(|(known, _)| known == path) {
                Some(at) => found.swap_remove(at).1,
                None => watch::read(path),
            };
            let contents = read(&path);
            let digest = contents.as_ref().ok().map(|contents| Digest::of(contents));
            let (named, loaded) = Loaded::take_in(&path, contents, &mut read);
            let loaded = loaded.map(|loaded| {
                let policy = loaded.policy.with_overrides(&overrides);
                Loaded { policy, ..loaded }
            });
            ((path, digest), named, loaded)
        });
        let (own, named, loaded) = read.await;
        {
            let mut state = self.state.lock();
            let before = std::mem::take(&mut state.read);
            // A policy that cannot be read names nothing: a change of what it named before may be
            // all that it takes to mend it.
            let kept = if loaded.is_err() && named.is_empty() { before } else { Vec::new() };
            let kept = kept.into_iter().skip(1);
            state.read = std::iter::once(own).chain(named).chain(kept).collect();
        }
        let loaded = loaded?;
        let config = self.config.clone();
        blocking(move || judge(config, &loaded).map(|()| loaded)).await
    }

    /// Puts into words what reports have to do with it: a budget on a metric that one has carried is
    /// no reason to warn.
    async fn as_reported(&self, warnings: &[Warning]) -> Vec<Warning> {
        if warnings.iter().all(|warning| warning.unheard_of.is_none()) {
            return warnings.to_vec();
        }
        // A store that has failed cannot tell; whatever the file says comes into force even so.
        let Ok(usage) = self.store.usage().await else { return warnings.to_vec() };
        let reported: BTreeSet<_> = usage.iter().map(|count| &*count.metric).collect();
        let told = warnings.iter().filter_map(|warning| match warning.unheard_of.as_deref() {
            Some(metric) if reported.contains(metric) => None,
            Some(metric) => Some(warning.of_unreported(metric)),
            None => Some(warning.clone()),
        });
        told.collect()
    }

    /// Tells at the start of budgets on metrics that no report has carried.
    pub(crate) async fn tell_of_unreported(&self) {
        let Some(file) = &self.config.policy_file else { return };
        let warnings = self.as_reported(file.warnings()).await;
        for warning in warnings.iter().filter(|warning| warning.unheard_of.is_some()) {
            tracing::warn!("{warning}");
        }
        let warnings = warnings.iter().map(Warning::to_string).collect();
        self.state.lock().status.warnings = warnings;
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

/// Refuses a file with which the server would not start, for a reason that comes with the file.
fn judge(mut started_with: Config, loaded: &Loaded) -> Result<(), Error> {
    let mut next = Config { policy: loaded.policy.clone(), ..started_with.clone() };
    if let Some(file) = &started_with.policy_file {
        loaded.server.news(file.server(), &started_with.given).apply(&mut next)?;
    }
    let before: Vec<_> = started_with.judge().iter().map(Error::to_string).collect();
    let wrong = next.judge().into_iter().find(|error| !before.contains(&error.to_string()));
    wrong.map_or(Ok(()), Err)
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

    use arc_swap::ArcSwap;
    use store::SystemClock;
    use store::{Options, Recovered, StoreUrl};

    use super::super::Parts;
    use super::*;
    use crate::live::Live;
    use crate::metrics::Metrics;
    use crate::refusals::Refusals;

    fn operator(path: &Path) -> Arc<Operator> {
        let Loaded { policy, file, .. } = Loaded::load(path).unwrap();
        let mut config = Config::new(policy.clone(), StoreUrl::Memory);
        config.policy_file = file;
        let store = Recovered::memory(Options::default()).unwrap().resume().unwrap();
        let metrics = Arc::new(Metrics::new());
        let refusals = Arc::new(Refusals::new(Arc::new(SystemClock::new())));
        Arc::new(Operator::new(Parts {
            store: Arc::new(store),
            live: Arc::new(ArcSwap::from_pointee(Live::new(policy, &metrics, refusals, None))),
            metrics,
            config,
        }))
    }

    #[tokio::test]
    async fn what_was_loaded_at_a_signal_is_not_loaded_again_by_the_watch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "[services.t1r]").unwrap();
        let operator = operator(&path);
        let mut watch = Watch::new(operator.config.policy_file.as_ref().unwrap());
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
