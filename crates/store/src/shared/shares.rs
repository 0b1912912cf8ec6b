//! Fair shares of the room for changes that wait for the disk.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

/// The most changes of one caller that may wait for the disk while no other caller waits. When more
/// than half of this waits, the callers share it, so that each of them has room.
pub(crate) const MAX_PENDING: usize = 100_000;

/// The least share of a caller, however many callers there are.
const LEAST_SHARE: usize = 2_048;

/// How many changes of each caller the gathering batch holds.
///
/// A change that no caller asked for, such as an expiry, counts for no caller.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// The callers and their changes. The empty name stands for calls without an indexer.
    held: Vec<(Box<str>, usize)>,
    places: HashMap<Box<str>, usize, RandomState>,
    /// The place of the last caller: the next call is most likely from the same caller.
    last: usize,
    /// How many callers have changes.
    callers: usize,
}

impl Shares {
    /// Adds changes of a caller.
    pub(crate) fn add(&mut self, caller: Option<&str>, changes: usize) {
        if changes == 0 {
            return;
        }
        let caller = caller.unwrap_or_default();
        if self.held.get(self.last).is_none_or(|(name, _)| **name != *caller) {
            self.last = self.place(caller);
        }
        let (_, held) = &mut self.held[self.last];
        self.callers += usize::from(*held == 0);
        *held += changes;
    }

    fn place(&mut self, caller: &str) -> usize {
        if let Some(&place) = self.places.get(caller) {
            return place;
        }
        self.held.push((caller.into(), 0));
        self.places.insert(caller.into(), self.held.len() - 1);
        self.held.len() - 1
    }

    /// Whether one more change of a caller may wait, where `pending` wait in all.
    pub(crate) fn has_room(&self, caller: Option<&str>, pending: usize) -> bool {
        if pending < MAX_PENDING / 2 {
            return true;
        }
        let place = self.places.get(caller.unwrap_or_default());
        let held = place.map_or(0, |&place| self.held[place].1);
        let callers = self.callers + usize::from(held == 0);
        held < (MAX_PENDING / callers).max(LEAST_SHARE)
    }

    /// Starts a new batch. The names stay: the policy bounds their number, and there are many batches
    /// a second.
    pub(crate) fn clear(&mut self) {
        self.callers = 0;
        self.held.iter_mut().for_each(|(_, held)| *held = 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EAST: Option<&str> = Some("east");
    const WEST: Option<&str> = Some("west");

    #[test]
    fn a_single_caller_may_fill_the_whole_bound_and_no_more() {
        let mut shares = Shares::default();
        shares.add(EAST, MAX_PENDING - 1);
        assert!(shares.has_room(EAST, MAX_PENDING - 1));
        shares.add(EAST, 1);
        assert!(!shares.has_room(EAST, MAX_PENDING));
    }

    #[test]
    fn a_caller_has_room_for_a_share_when_another_has_filled_the_bound() {
        let mut shares = Shares::default();
        shares.add(EAST, MAX_PENDING);
        assert!(shares.has_room(WEST, MAX_PENDING) && shares.has_room(None, MAX_PENDING));
        shares.add(WEST, MAX_PENDING / 2);
        assert!(!shares.has_room(WEST, MAX_PENDING * 3 / 2));
        assert!(shares.has_room(None, MAX_PENDING * 3 / 2));
        shares.clear();
        assert!(shares.has_room(WEST, MAX_PENDING), "another batch");
        for number in 0..1_000 {
            shares.add(Some(&number.to_string()), 1);
        }
        assert!(shares.has_room(WEST, MAX_PENDING), "a thousand callers leave a share too");
    }

    #[test]
    fn no_caller_is_refused_while_few_changes_wait() {
        let mut shares = Shares::default();
        for _ in 0..20 {
            shares.add(EAST, 10);
            shares.add(WEST, 2_400);
        }
        assert!(shares.has_room(WEST, 48_200));
        shares.add(WEST, 4_000);
        assert!(!shares.has_room(WEST, 52_200) && shares.has_room(EAST, 52_200));
    }
}
