//! The latest snapshot of the server. All requests share it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::snapshot::Snapshot;

/// Holds the latest snapshot.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) snapshot: ArcSwapOption<Snapshot>,
    /// Locked while a snapshot is taken, so that one is taken at a time.
    pub(super) taking: Mutex<()>,
    /// How often an operator changed something through the API. The next snapshot shows the change.
    pub(super) changes: AtomicU64,
    /// The revision of the first snapshot. Revisions rise across restarts too.
    pub(super) base: u64,
}

impl Cache {
    /// `started_at` is when the server started.
    pub(super) fn new(started_at: Duration) -> Self {
        Self {
            snapshot: ArcSwapOption::empty(),
            taking: Mutex::default(),
            changes: AtomicU64::new(0),
            // At most a thousand snapshots are taken in a second, so the next start has a higher number.
            base: u64::try_from(started_at.as_millis()).unwrap_or(u64::MAX / 2),
        }
    }

    /// Makes the next request take a new snapshot, because an operator changed something.
    pub(super) fn invalidate(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
