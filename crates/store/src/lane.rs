//! A small number for each thread, to keep data of threads apart.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of lanes. With more threads than lanes, threads share lanes, which is only slower.
pub const LANES: usize = 16;

/// The lane of the current thread, below [`LANES`].
pub fn current() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % LANES);
    }
    LANE.get()
}
