//! How long ago each member of a fleet wrote its row, as one server sees it.

use std::collections::HashMap;
use std::time::Duration;

use super::rows::MemberId;

/// The rows of the members of a fleet, in a database that has no clock.
///
/// Nobody's clock is compared with another one: a row was written when this server sees that it has
/// changed.
#[derive(Debug)]
pub(crate) struct Sightings {
    rows: HashMap<MemberId, Sighting>,
    unknown_age: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Sighting {
    revision: i64,
    /// When this server saw this revision first, and how old it was then.
    first_seen: Duration,
    age: Duration,
}

impl Sightings {
    /// No rows yet. The rows that are seen first count as `unknown_age` old: whether their servers live is
    /// not known.
    pub(crate) fn new(unknown_age: Duration) -> Self {
        Self { rows: HashMap::new(), unknown_age }
    }

    /// Notes the revision of each row at `now`, and returns how long ago each was written. `own` has just
    /// written its row.
    pub(crate) fn observe(
        &mut self,
        rows: &[(MemberId, i64)],
        own: Option<MemberId>,
        now: Duration,
    ) -> Vec<Duration> {
        let before = std::mem::take(&mut self.rows);
        let age_of = |&(id, revision): &(MemberId, i64)| {
            let known = before.get(&id).filter(|sighting| sighting.revision == revision);
            let is_unknown = before.is_empty() && own != Some(id);
            let age = if is_unknown { self.unknown_age } else { Duration::ZERO };
            let sighting = known.copied().unwrap_or(Sighting { revision, first_seen: now, age });
            self.rows.insert(id, sighting);
            now.saturating_sub(sighting.first_seen) + sighting.age
        };
        rows.iter().map(age_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: MemberId = MemberId(1);
    const OTHER: MemberId = MemberId(2);
    const NEW: MemberId = MemberId(3);

    #[test]
    fn a_row_is_as_old_as_it_was_seen_unchanged() {
        let mut sightings = Sightings::new(Duration::from_secs(10));
        let mut ages = |rows: &[_], now| {
            let ages = sightings.observe(rows, Some(OWN), Duration::from_secs(now));
            ages.iter().map(Duration::as_secs).collect::<Vec<_>>()
        };
        assert_eq!(ages(&[(OWN, 5), (OTHER, 3)], 7), [0, 10], "whether it lives is not known");
        assert_eq!(ages(&[(OWN, 6), (OTHER, 3)], 8), [0, 11]);
        // A row that appears was written since the last look.
        assert_eq!(ages(&[(OWN, 7), (OTHER, 8), (NEW, 9)], 9), [0, 0, 0]);
        assert_eq!(ages(&[(OWN, 10), (OTHER, 8), (NEW, 9)], 12), [0, 3, 3]);
        // A row that was removed and comes back is new.
        assert_eq!(ages(&[(OWN, 11), (NEW, 12)], 13), [0, 0]);
        assert_eq!(ages(&[(OWN, 13), (OTHER, 14), (NEW, 12)], 14), [0, 0, 1]);
    }
}
