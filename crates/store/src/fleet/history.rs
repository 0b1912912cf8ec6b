//! The terms that one server has seen.

use std::collections::BTreeMap;

use super::rows::{LeaderId, LeadershipRow};

/// How many terms are kept.
const TERMS: usize = 64;

/// The latest terms that one server has seen, by epoch.
///
/// A database that was set back to an earlier state shows a term that was followed by another one.
#[derive(Debug, Default)]
pub(super) struct History {
    terms: BTreeMap<u64, (LeaderId, u64)>,
}

impl History {
    /// Notes a row. A leader that renews, or another one in the same epoch, shows that the later terms
    /// are lost for good.
    pub(super) fn add(&mut self, row: &LeadershipRow) {
        match self.terms.get_mut(&row.epoch) {
            Some((leader, renewals)) if *leader == row.leader && row.renewals <= *renewals => {}
            Some(seen) => {
                *seen = (row.leader, row.renewals);
                self.terms.split_off(&(row.epoch + 1));
            }
            None => drop(self.terms.insert(row.epoch, (row.leader, row.renewals))),
        }
        if self.terms.len() > TERMS {
            self.terms.pop_first();
        }
    }

    /// Whether the row is as it was seen, or as it was before: its leader has not renewed since.
    pub(super) fn has(&self, row: &LeadershipRow) -> bool {
        let seen = self.terms.get(&row.epoch);
        seen.is_some_and(|(leader, renewals)| *leader == row.leader && row.renewals <= *renewals)
    }

    /// Whether a later term than that of the row was seen.
    pub(super) fn is_stale(&self, row: &LeadershipRow) -> bool {
        self.terms.last_key_value().is_some_and(|(epoch, _)| row.epoch < *epoch)
    }
}
