//! Reloads of the policy file and of the files of keys that it names: when one of them changes, on a
//! signal, and when an operator requests it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use policy::Warning;
use policy::overrides::{AuditEntry, Overrides};
use store::{AuditNote, Enforced, Unavailable};
use tokio::time::MissedTickBehavior;

use super::changes::Attribution;
use super::outcome::{Done, PolicyStatus};
use super::{By, Operator, OperatorError};
use crate::blocking::blocking;
use crate::config::Config;
use crate::config::Given;
use crate::config::watch::{self, CHECK_EVERY, Digest, Watched};
use crate::config::{Loaded, PolicyFile};
use crate::error::Error;
use crate::repeated::Repeated;

/// The contents of files that were read already, the policy file first.
type FileContents = Vec<(PathBuf, io::Result<Vec<u8>>)>;

static LOAD_FAILURES: Repeated = Repeated::new();
static LOAD_WARNINGS: Repeated = Repeated::new();

/// The state of the watch of the policy file.
struct Watch {
    watched: Watched,
    /// Whether the file has to be loaded again, because the store was too busy to end leases.
    retry: bool,
}

impl Watch {
    fn new(file: &PolicyFile) -> Self {
        Self { watched: Watched::new(file.files().to_vec()), retry: false }
    }
}

impl Operator {
    /// Loads the policy file again, even if it has not changed, and puts it into force.
    ///
    /// Leases that it does not allow end at once. Lowered limits end no lease. Overrides stay in force on
    /// top of it. A file that is invalid, is missing or would open the port to everybody is refused: the
    /// policy in force stays, and the [status](Operator::policy_status) has the reason. There is a
    /// warning for each setting in its `[server]` section that differs from the start: it needs a
    /// restart. Cancellation: the file is still loaded.
    ///
    /// # Errors
    ///
    /// [`OperatorError::Conflict`] when the server was started without a file, or the file is
    /// refused: with file, line, column and reason. After [`OperatorError::Unavailable`] the policy
    /// is in force, and leases that it does not allow may still live.
    pub async fn reload(self: &Arc<Self>, by: By<'_>) -> Result<Done, OperatorError> {
        self.load(Attribution::try_from(by)?, None).await
    }

    /// Checks the policy file and the files that it names periodically, and loads them when one of them
    /// changes. Never returns; without a file it returns at once.
    pub(crate) async fn watch(self: Arc<Self>) {
        let Some(mut watch) = self.config.policy_file.as_ref().map(Watch::new) else { return };
        let mut ticks = tokio::time::interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            watch = self.check_files(watch).await;
        }
    }

    /// Checks the files once.
    async fn check_files(self: &Arc<Self>, watch: Watch) -> Watch {
        let Watch { mut watched, retry } = watch;
        let read = self.state.lock().read.clone();
        if !watched.paths().iter().eq(read.iter().map(|(path, _)| path)) {
            watched = Watched::new(read);
        }
        let (watched, found) = watched.check().await;
        let found = found.map(|files| watched.paths().iter().cloned().zip(files).collect());
        let has_changed = found.as_ref().is_some_and(|found| !self.has_read(found));
        if !has_changed && !retry {
            return Watch { watched, retry };
        }
        let attribution = Attribution { from: "file".into(), note: "".into() };
        let loaded = self.load(attribution, found.filter(|_| has_changed)).await;
        // A refused file was logged, and is read again when it changes.
        let retry = loaded == Err(OperatorError::Unavailable(Unavailable::Overloaded));
        Watch { watched, retry }
    }

    /// Whether the files were read with these contents already, for example at a signal.
    fn has_read(&self, found: &FileContents) -> bool {
        let digest =
            |contents: &io::Result<Vec<u8>>| contents.as_ref().ok().map(|it| Digest::of(it));
        let found = found.iter().map(|(path, contents)| (path, digest(contents)));
        let read = &self.state.lock().read;
        found.eq(read.iter().map(|(path, digest)| (path, *digest)))
    }

    async fn load(
        self: &Arc<Self>,
        attribution: Attribution,
        found: Option<FileContents>,
    ) -> Result<Done, OperatorError> {
        let operator = self.clone();
        self.run_change(async move {
            let loaded = operator.load_now(attribution, found).await;
            if let Err(error) = &loaded {
                let message = match error {
                    OperatorError::Unavailable(error) => format!(
                        "the policy file is in force, but leases that it does not allow may live \
                         on: {error}"
                    ),
                    error => format!("the policy file was not loaded: {error}"),
                };
                if let Some(times) = LOAD_FAILURES.count_of(&message) {
                    tracing::error!(times, "{message}");
                }
            }
            loaded
        })
        .await
    }

    async fn load_now(
        &self,
        attribution: Attribution,
        found: Option<FileContents>,
    ) -> Result<Done, OperatorError> {
        let Some(started_with) = &self.config.policy_file else {
            let problem = "there is no policy file: the server was started without one";
            return Err(OperatorError::Conflict(problem.into()));
        };
        let enforced = {
            let in_force = self.in_force.lock().await;
            let overrides = in_force.overrides.clone();
            let read = self.read(started_with, found, overrides).await;
            let Loaded { policy, server, warnings, file } =
                read.map_err(|error| self.refuse(started_with, &error))?;
            let warnings = self.resolve_unreported_metrics(&warnings).await;
            let warnings = all_warnings(started_with, &warnings, &server);
            let live = self.put_into_force(policy).await;
            if let Some(file) = &file {
                self.store.set_policy_hash(file.hash());
            }
            self.metrics.reloads.applied.inc();
            let path = started_with.path().display().to_string();
            if LOAD_WARNINGS.count_of(&warnings.join("\n")).is_some() {
                for warning in &warnings {
                    tracing::warn!("{warning}");
                }
            }
            self.update_status(|status| PolicyStatus {
                file: Some(path.clone()),
                loaded_at: self.now().as_unix(),
                refused: None,
                warnings,
                ..status
            });
            let entry = self.new_entry(attribution, format!("loaded the policy file {path}"));
            // The file is durable by itself: it is in force even when the audit entry cannot be written.
            let enforced = self.store.enforce(&live.policy, AuditNote::New(entry.clone()));
            async move { enforced.await.map(|enforced| (enforced, entry)) }
        };
        let (Enforced { ended, entry: number }, entry) = match enforced.await {
            Err(Unavailable::Standby) => {
                let path = started_with.path().display();
                let summary =
                    format!("loaded the policy file {path}, which counts once this server leads");
                tracing::info!("{summary}");
                return Ok(Done { ended: 0, summary });
            }
            enforced => enforced?,
        };
        let entry = AuditEntry { number: number.unwrap_or(0), ended: ended as u64, ..entry };
        Ok(self.publish(self.audit_entry(entry.number).unwrap_or(entry)))
    }

    /// Reads the files that were not read already, and applies the overrides to the policy.
    async fn read(
        &self,
        file: &PolicyFile,
        found: Option<FileContents>,
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
            let (named, loaded) = Loaded::from_contents(&path, contents, &mut read);
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
            // An invalid policy names no files. The files that it named before stay watched: a change of
            // one of them may make it valid.
            let kept = if loaded.is_err() && named.is_empty() { before } else { Vec::new() };
            let kept = kept.into_iter().skip(1);
            state.read = std::iter::once(own).chain(named).chain(kept).collect();
        }
        let loaded = loaded?;
        let config = self.config.clone();
        blocking(move || check_startable(config, &loaded).map(|()| loaded)).await
    }

    /// Drops the warnings about metrics that a report has contained, and completes those about metrics
    /// that no report has contained.
    async fn resolve_unreported_metrics(&self, warnings: &[Warning]) -> Vec<Warning> {
        if warnings.iter().all(|warning| warning.unheard_of.is_none()) {
            return warnings.to_vec();
        }
        // A store that has failed cannot list its metrics. The file still comes into force.
        let Ok(usage) = self.store.usage().await else { return warnings.to_vec() };
        let reported: BTreeSet<_> = usage.iter().map(|count| &*count.metric).collect();
        let resolved = warnings.iter().filter_map(|warning| match warning.unheard_of.as_deref() {
            Some(metric) if reported.contains(metric) => None,
            Some(metric) => Some(warning.of_unreported(metric)),
            None => Some(warning.clone()),
        });
        resolved.collect()
    }

    /// Warns at the start of budgets on metrics that no report has contained.
    pub(crate) async fn warn_of_unreported_metrics(&self) {
        let Some(file) = &self.config.policy_file else { return };
        let warnings = self.resolve_unreported_metrics(file.warnings()).await;
        for warning in warnings.iter().filter(|warning| warning.unheard_of.is_some()) {
            tracing::warn!("{warning}");
        }
        let warnings = warnings.iter().map(Warning::to_string).collect();
        self.state.lock().status.warnings = warnings;
    }

    /// Publishes why the file is not in force, and returns the error.
    fn refuse(&self, file: &PolicyFile, error: &Error) -> OperatorError {
        self.metrics.reloads.refused.inc();
        let path = file.path().display().to_string();
        let mut problem = error.to_string();
        if !problem.contains(&path) {
            problem = format!("{path}: {problem}");
        }
        self.update_status(|status| PolicyStatus { refused: Some(problem.clone()), ..status });
        OperatorError::Conflict(format!("{problem} (the policy in force stays)"))
    }
}

/// Refuses a file with which the server would not start, if the file is the reason.
fn check_startable(mut started_with: Config, loaded: &Loaded) -> Result<(), Error> {
    let mut next = Config { policy: loaded.policy.clone(), ..started_with.clone() };
    if let Some(file) = &started_with.policy_file {
        loaded.server.changed_since(file.server(), &started_with.given).apply(&mut next)?;
    }
    let before: Vec<_> = started_with.find_errors().iter().map(Error::to_string).collect();
    let wrong = next.find_errors().into_iter().find(|error| !before.contains(&error.to_string()));
    wrong.map_or(Ok(()), Err)
}

/// All warnings about a file that was loaded into a running server.
fn all_warnings(started_with: &PolicyFile, warnings: &[Warning], server: &Given) -> Vec<String> {
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

    use super::*;
    use crate::live::Live;
    use crate::metrics::Metrics;
    use crate::refusals::RefusalLog;

    fn operator(path: &Path) -> Arc<Operator> {
        let Loaded { policy, file, .. } = Loaded::load(path).unwrap();
        let mut config = Config::new(policy.clone(), StoreUrl::Memory);
        config.policy_file = file;
        let store = Recovered::memory(Options::default()).unwrap().resume().unwrap();
        let metrics = Arc::new(Metrics::new());
        let refusals = Arc::new(RefusalLog::new(Arc::new(SystemClock::new())));
        let live = Arc::new(ArcSwap::from_pointee(Live::new(policy, &metrics, refusals, None)));
        Arc::new(Operator::new(Arc::new(store), live, metrics, config))
    }

    #[tokio::test]
    async fn a_file_that_was_loaded_at_a_signal_is_not_loaded_again_by_the_watch() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, "[services.t1r]").unwrap();
        let operator = operator(&path);
        let mut watch = Watch::new(operator.config.policy_file.as_ref().unwrap());
        let loads = || operator.metrics.reloads.applied.get();
        let check_often = async |mut watch: Watch| {
            for _ in 0..4 {
                watch = operator.check_files(watch).await;
            }
            watch
        };
        watch = check_often(watch).await;
        assert_eq!(loads(), 0, "nothing has changed");

        fs::write(&path, "[services.t2w]").unwrap();
        operator.reload(By { from: "signal", note: "" }).await.unwrap();
        watch = check_often(watch).await;
        assert_eq!(loads(), 1, "the watch found what the signal had loaded");

        fs::write(&path, "[services.t3x]").unwrap();
        watch = check_often(watch).await;
        assert_eq!(loads(), 2);
        assert!(operator.policy().has_entry("t3x"));

        // A refused file is reported once, until it changes.
        fs::write(&path, "[services.").unwrap();
        check_often(watch).await;
        assert_eq!((loads(), operator.metrics.reloads.refused.get()), (2, 1));
    }
}
