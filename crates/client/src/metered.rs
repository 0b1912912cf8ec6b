//! Reports what a pool counts to the recorder of the `metrics` crate.
//!
//! The pool counts in any case, and the difference is reported once a second. So a slow recorder costs
//! the hot paths nothing, and the numbers of several pools add up. Nothing is labelled by service:
//! each lease would need its own set of counters. Without the feature nothing is reported.

use std::time::{Duration, Instant};

#[cfg(feature = "metrics")]
use metrics::{counter, gauge};

use crate::stats::PoolStats;

const PERIOD: Duration = Duration::from_secs(1);

/// What was reported so far.
#[derive(Debug, Default)]
pub(crate) struct Metered {
    reported: PoolStats,
    at: Option<Instant>,
}

impl Metered {
    /// Reports what has changed, unless the last report was a moment ago and this is not the `last`
    /// one. Returns when to report the rest.
    pub(crate) fn report(&mut self, stats: PoolStats, last: bool, now: Instant) -> Option<Instant> {
        if !cfg!(feature = "metrics") || stats == self.reported {
            return None;
        }
        if let Some(next) = self.at.map(|at| at + PERIOD).filter(|next| *next > now && !last) {
            return Some(next);
        }
        self.at = Some(now);
        #[cfg(feature = "metrics")]
        add(&self.reported, &stats);
        self.reported = stats;
        None
    }
}

/// Adds the difference between two moments.
#[cfg(feature = "metrics")]
fn add(before: &PoolStats, stats: &PoolStats) {
    let more = |count: fn(&PoolStats) -> u64| count(stats) - count(before);
    let held = |count: fn(&PoolStats) -> u64| count(stats) as f64 - count(before) as f64;
    let attached = f64::from(u8::from(stats.attached)) - f64::from(u8::from(before.attached));
    gauge!("tgm_session_pool_held", "kind" => "session").increment(held(|s| s.sessions_held));
    gauge!("tgm_session_pool_held", "kind" => "worker").increment(held(|s| s.workers_held));
    gauge!("tgm_session_pool_attached").increment(attached);

    let borrowed = |kind| counter!("tgm_session_pool_borrowed_total", "kind" => kind);
    borrowed("session").increment(more(|s| s.sessions_borrowed));
    borrowed("worker").increment(more(|s| s.workers_borrowed));
    for ((reason, now), (_, before)) in
        stats.denied.by_kind().into_iter().zip(before.denied.by_kind())
    {
        counter!("tgm_session_pool_denied_total", "reason" => reason).increment(now - before);
    }
    let ended = |reason| counter!("tgm_session_pool_ended_total", "reason" => reason);
    ended("revoked").increment(more(|s| s.revoked));
    ended("lost").increment(more(|s| s.lost));
    let kept_alive = |outcome| counter!("tgm_session_pool_keep_alives_total", "outcome" => outcome);
    kept_alive("extended").increment(more(|s| s.kept_alive));
    kept_alive("failed").increment(more(|s| s.keep_alives_failed));
    counter!("tgm_session_pool_returned_total").increment(more(|s| s.returned));
    counter!("tgm_session_pool_not_returned_total").increment(more(|s| s.not_returned));
    counter!("tgm_session_pool_retried_total").increment(more(|s| s.retried));
    counter!("tgm_session_pool_borrowed_again_total").increment(more(|s| s.borrowed_again));
    counter!("tgm_session_pool_failed_open_total").increment(more(|s| s.failed_open));
}
