//! The latest picture of the server, which all viewers share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Mutex;

use super::picture::Picture;

/// The latest picture.
#[derive(Debug)]
pub(super) struct View {
    pub(super) picture: ArcSwapOption<Picture>,
    /// Held by whoever takes a picture; the others wait for it.
    pub(super) taking: Mutex<()>,
    /// How often an operator changed something through the API, and has to see it there next.
    pub(super) changes: AtomicU64,
    /// What the first revision follows: numbers rise across restarts too.
    pub(super) base: u64,
}

impl View {
    /// `started_at` is when the server started.
    pub(super) fn new(started_at: Duration) -> Self {
        Self {
            picture: ArcSwapOption::empty(),
            taking: Mutex::default(),
            changes: AtomicU64::new(0),
            // More than a thousand pictures a second are never taken.
            base: u64::try_from(started_at.as_millis()).unwrap_or(u64::MAX / 2),
        }
    }

    /// Lets the next look see what an operator changed just now.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
