//! The longest time between two keep-alives of one lease, measured outside of the pool.

use std::time::Duration;

/// The number of keep-alives of every lease, and when it last changed.
///
/// Counters are read at intervals, so the error of a gap is at most one interval.
#[derive(Debug)]
pub(super) struct Gaps {
    seen: Vec<(u64, Duration)>,
    longest: Duration,
}

impl Gaps {
    /// Begins at `now` with the counters as they are.
    pub(super) fn begin(counters: impl Iterator<Item = u64>, now: Duration) -> Self {
        Self { seen: counters.map(|count| (count, now)).collect(), longest: Duration::ZERO }
    }

    /// Reads the counters, in the same order as [`Gaps::begin`].
    pub(super) fn look(&mut self, counters: impl Iterator<Item = u64>, now: Duration) {
        for ((seen, since), count) in self.seen.iter_mut().zip(counters) {
            if *seen != count {
                self.longest = self.longest.max(now.saturating_sub(*since));
                (*seen, *since) = (count, now);
            }
        }
    }

    /// The longest gap up to `now`, including gaps that have not ended.
    pub(super) fn longest(&self, now: Duration) -> Duration {
        let open = self.seen.iter().map(|(_, since)| now.saturating_sub(*since));
        open.fold(self.longest, Duration::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_the_longest_between_two_changes_of_one_counter_or_up_to_now() {
        let at = Duration::from_secs;
        let mut gaps = Gaps::begin([5, 0].into_iter(), at(0));
        gaps.look([6, 0].into_iter(), at(4));
        gaps.look([7, 1].into_iter(), at(7));
        assert_eq!(gaps.longest(at(7)), at(7), "the second changed after seven seconds");
        gaps.look([8, 2].into_iter(), at(13));
        assert_eq!(gaps.longest(at(13)), at(7));
        assert_eq!(gaps.longest(at(21)), at(8), "neither has changed for eight seconds");
    }
}
