//! Counts in wire messages.

use wire::worker::WorkersState;

/// The pool in a refusal. Its maximum is the ceiling that refused, whatever the scope of this ceiling,
/// because old clients print only this number.
pub(super) fn refused_by(ceiling: u64, pool: WorkersState) -> WorkersState {
    WorkersState { max_workers: count(ceiling), available_workers: 0, ..pool }
}

pub(super) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
