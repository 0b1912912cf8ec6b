//! Metrics of the commits of a store, which the journal thread counts.

use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The upper bounds of the time buckets, in seconds: from a fast flash disk to one that hangs.
const SECONDS: [f64; 13] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0];

/// The upper bounds of the size buckets, in changes.
const CHANGES: [f64; 9] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 10_000.0, 100_000.0];

/// The metrics of the commits of one store. Only one thread counts, so the lock in a histogram is
/// always free.
#[derive(Clone, Debug)]
pub struct Commits {
    duration: Histogram,
    latency: Histogram,
    changes: Histogram,
}

impl Default for Commits {
    fn default() -> Self {
        Self {
            duration: Histogram::new(SECONDS),
            latency: Histogram::new(SECONDS),
            changes: Histogram::new(CHANGES),
        }
    }
}

impl Commits {
    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "store_commit",
            "What one commit took, its flush included",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "store_latency",
            "From the first change of a batch, as applied, until the batch was durable",
            Unit::Seconds,
            self.latency.clone(),
        );
        registry.register(
            "store_commit_changes",
            "Changes that shared one commit, and so one flush",
            self.changes.clone(),
        );
    }

    /// Counts a commit that succeeded. `batch` is the number of changes and how long the first of
    /// them waited; it is `None` for a commit that only wrote the store time.
    pub fn count(&self, took: Duration, batch: Option<(usize, Duration)>) {
        self.duration.observe(took.as_secs_f64());
        if let Some((changes, waited)) = batch {
            self.changes.observe(changes as f64);
            self.latency.observe(waited.as_secs_f64());
        }
    }
}
