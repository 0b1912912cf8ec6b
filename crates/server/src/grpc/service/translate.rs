//! Translates pools, counts and durations between the wire and the domain.

use std::collections::BTreeMap;
use std::time::Duration;

use lease::{Invalid, MAX_MINIMAL_LIFE, PoolState};
use wire::worker::WorkersState;

/// The pool in the answer to a borrow. It shows only the trace of the borrower.
pub(super) fn borrowers_view(pool: PoolState, trace: String) -> WorkersState {
    let mut own = BTreeMap::new();
    if pool.own_trace > 0 {
        own.insert(trace, count(pool.own_trace));
    }
    WorkersState {
        active_trace_id: count(pool.traces),
        worker_count_per_trace_id: own,
        ..counts(pool.borrowed, pool.max)
    }
}

/// The counts of a pool. Without a limit the maximum is 0, and the available number is the largest
/// possible.
pub(super) fn counts(borrowed: u64, max: Option<u64>) -> WorkersState {
    WorkersState {
        available_workers: max.map_or(i64::MAX, |max| count(max.saturating_sub(borrowed))),
        borrowed_workers: count(borrowed),
        max_workers: max.map_or(0, count),
        ..WorkersState::default()
    }
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// Reads the minimal life of a return, to the nanosecond. The ledger limits one that is too long.
pub(super) fn from_wire(duration: prost_types::Duration) -> Result<Duration, Invalid> {
    let invalid = |problem| Invalid { field: "minimal_worker_life_duration", problem };
    if duration.seconds < 0 || duration.nanos < 0 {
        return Err(invalid("is negative"));
    }
    let seconds = duration.seconds.unsigned_abs();
    match u32::try_from(duration.nanos) {
        Ok(nanos) if nanos < 1_000_000_000 => {
            Ok(Duration::new(seconds.min(MAX_MINIMAL_LIFE.as_secs() + 1), nanos))
        }
        _ => Err(invalid("has a second or more in its nanos")),
    }
}

/// The pool in a refusal. Its maximum is the limit that refused, whatever the scope of this limit,
/// because old clients print only this number.
pub(super) fn refused_by(limit: u64, pool: WorkersState) -> WorkersState {
    WorkersState { max_workers: count(limit), available_workers: 0, ..pool }
}

pub(super) fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
