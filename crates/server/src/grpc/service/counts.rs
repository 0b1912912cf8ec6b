//! Counts as they stand on the wire.

use wire::worker::WorkersState;

/// A pool as a refusal shows it: its maximum is the ceiling that refused, whatever its scope, because
/// old clients print that and nothing else.
pub(super) fn refused_by(ceiling: u64, pool: WorkersState) -> WorkersState {
    WorkersState { max_workers: count(ceiling), available_workers: 0, ..pool }
}

pub(super) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
