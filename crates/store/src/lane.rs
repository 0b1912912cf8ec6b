//! A small number for each thread, for what threads had better not share.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads beyond this many share a lane with another one, which is only slower.
pub const LANES: usize = 16;

/// The lane of the current thread, below [`LANES`].
pub fn own() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % LANES);
    }
    LANE.get()
}
