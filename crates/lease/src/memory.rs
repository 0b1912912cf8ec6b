//! Facts that are remembered for a while, with a bound for each indexer.

use std::collections::BTreeSet;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::clock::Timestamp;
use crate::records::{Record, Records};
use crate::slab::{NONE, RECORDS_PER_HOLD};

/// How many facts of one indexer a memory holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// At most this many of each indexer.
    Each(usize),
    /// At most this many of one indexer alone, and an equal part where several have some.
    Shared(usize),
}

/// Facts by indexer and key, each until a time of its own.
///
/// No fact is forgotten before its time. A caller that adds one calls [`Memory::check_room`] first;
/// facts that are restored after a restart need no room. A fact that is past its time is not found,
/// even before it is taken out.
#[derive(Debug)]
pub(crate) struct Memory<R> {
    facts: Records<Fact<R>>,
    /// The numbers of all facts in the order of their times.
    by_time: BTreeSet<(Timestamp, u32)>,
    /// How many facts each indexer has that has any.
    held: HashMap<u32, usize, FixedState>,
    bound: Bound,
}

/// A fact, its indexer and the time until which it is remembered.
#[derive(Debug)]
pub(crate) struct Fact<R> {
    pub(crate) indexer: u32,
    pub(crate) until: Timestamp,
    pub(crate) what: R,
}

impl<R: Record> Record for Fact<R> {
    type Key<'a>
        = (u32, R::Key<'a>)
    where
        R: 'a;

    fn key(&self) -> (u32, R::Key<'_>) {
        (self.indexer, self.what.key())
    }
}

impl<R: Record> Memory<R> {
    pub(crate) fn new(bound: Bound, hasher: &FixedState) -> Self {
        let held = HashMap::with_hasher(hasher.clone());
        Self { facts: Records::new(hasher), by_time: BTreeSet::new(), held, bound }
    }

    /// Looks for room for one more fact of an indexer. Where there is none, facts that are past are
    /// taken out first, as many as one hold may handle.
    ///
    /// # Errors
    ///
    /// How many it may have, where it has as many.
    pub(crate) fn check_room(&mut self, indexer: u32, now: Timestamp) -> Result<(), u64> {
        if self.look_for_room(indexer).is_err() {
            self.expire(now, RECORDS_PER_HOLD / 2);
        }
        self.look_for_room(indexer)
    }

    fn look_for_room(&self, indexer: u32) -> Result<(), u64> {
        let part = |indexers: usize| match self.bound {
            Bound::Each(most) => most,
            Bound::Shared(most) => most / indexers,
        };
        // There is one more that holds something, if this one holds nothing yet.
        if self.facts.len() < part(self.held.len() + 1) {
            return Ok(());
        }
        let held = self.held.get(&indexer).copied();
        let most = part(self.held.len() + usize::from(held.is_none()));
        if held.unwrap_or(0) < most { Ok(()) } else { Err(most as u64) }
    }

    /// Remembers `what` until then, in place of what was remembered under its key, and answers the
    /// number it has meanwhile.
    pub(crate) fn remember(&mut self, indexer: u32, what: R, until: Timestamp) -> u32 {
        let known = self.facts.find((indexer, what.key()));
        self.forget(known);
        *self.held.entry(indexer).or_insert(0) += 1;
        let at = self.facts.insert(Fact { indexer, until, what });
        self.by_time.insert((until, at));
        at
    }

    /// The number of the fact of that key, if its time is not past.
    pub(crate) fn find<'a>(&'a self, indexer: u32, key: R::Key<'a>, now: Timestamp) -> Option<u32> {
        let at = self.facts.find((indexer, key));
        self.facts.get(at).filter(|fact| fact.until > now).map(|_| at)
    }

    /// The fact of that key, if its time is not past.
    pub(crate) fn get<'a>(
        &'a self,
        indexer: u32,
        key: R::Key<'a>,
        now: Timestamp,
    ) -> Option<&'a R> {
        self.find(indexer, key, now).map(|at| &self.facts[at].what)
    }

    /// The fact of that number. Numbers are used again.
    pub(crate) fn at(&self, at: u32) -> Option<&Fact<R>> {
        self.facts.get(at)
    }

    /// The fact of that number, to be changed in what is not its key.
    pub(crate) fn at_mut(&mut self, at: u32) -> &mut R {
        &mut self.facts[at].what
    }

    /// Forgets the fact of that number; none has the number [`NONE`].
    pub(crate) fn forget(&mut self, at: u32) {
        if at == NONE {
            return;
        }
        let Some(fact) = self.facts.remove(at) else { return };
        self.by_time.remove(&(fact.until, at));
        if let Some(held) = self.held.get_mut(&fact.indexer) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&fact.indexer);
            }
        }
    }

    /// Whether facts that are past at `now` are still here.
    pub(crate) fn has_past(&self, now: Timestamp) -> bool {
        self.by_time.first().is_some_and(|&(until, _)| until <= now)
    }

    /// Takes out what is past at `now`, at most so many facts.
    pub(crate) fn expire(&mut self, now: Timestamp, most: usize) {
        for _ in 0..most {
            match self.by_time.first() {
                Some(&(until, at)) if until <= now => self.forget(at),
                _ => break,
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.facts.len() == 0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Fact<R>> {
        self.facts.iter().map(|(_, fact)| fact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Record for u64 {
        type Key<'a> = u64;

        fn key(&self) -> u64 {
            *self
        }
    }

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn memory(bound: Bound) -> Memory<u64> {
        Memory::new(bound, &FixedState::with_seed(1))
    }

    fn knows(memory: &Memory<u64>, indexer: u32, key: u64, now: u64) -> bool {
        memory.get(indexer, key, at(now)).is_some()
    }

    #[test]
    fn a_fact_is_forgotten_at_its_time_and_a_repeated_fact_at_the_later_time() {
        let mut memory = memory(Bound::Each(10));
        memory.remember(0, 1, at(5));
        memory.remember(0, 2, at(5));
        memory.remember(0, 2, at(9));
        assert!(!knows(&memory, 0, 1, 5), "not found, though it is still there");
        memory.expire(at(5), 10);
        assert!(knows(&memory, 0, 2, 5) && !knows(&memory, 1, 2, 5));
        memory.expire(at(9), 10);
        assert!(!knows(&memory, 0, 2, 8));
        assert_eq!((memory.by_time.len(), memory.held.len()), (0, 0));
    }

    #[test]
    fn a_full_memory_has_no_room_for_its_indexer_and_forgets_nothing_early() {
        let mut memory = memory(Bound::Each(2));
        for key in 1..=2 {
            assert_eq!(memory.check_room(7, at(0)), Ok(()));
            memory.remember(7, key, at(100));
        }
        assert_eq!((memory.check_room(7, at(0)), memory.check_room(8, at(0))), (Err(2), Ok(())));
        // A restored fact is remembered without a check for room.
        memory.remember(7, 3, at(50));
        assert!((1..=3).all(|key| knows(&memory, 7, key, 49)));
        assert_eq!(memory.check_room(7, at(50)), Err(2));
        assert_eq!(memory.check_room(7, at(100)), Ok(()));
    }

    #[test]
    fn a_shared_memory_is_one_indexers_alone_and_divided_among_several() {
        let mut memory = memory(Bound::Shared(4));
        for key in 0..4 {
            assert_eq!(memory.check_room(7, at(0)), Ok(()));
            memory.remember(7, key, at(100));
        }
        assert_eq!(memory.check_room(7, at(0)), Err(4));
        for key in 0..2 {
            assert_eq!(
                memory.check_room(8, at(0)),
                Ok(()),
                "what another filled is not in the way"
            );
            memory.remember(8, key, at(100));
        }
        assert_eq!((memory.check_room(8, at(0)), memory.check_room(7, at(0))), (Err(2), Err(2)));
    }

    #[test]
    fn a_fact_that_is_remembered_and_forgotten_repeatedly_takes_up_one_place() {
        let mut memory = memory(Bound::Each(2));
        for round in 0..10_000 {
            memory.remember(0, 1, at(1_000_000 - round));
            memory.remember(0, 2, at(1_000_000));
            let one = memory.find(0, 1, at(0)).unwrap();
            memory.forget(one);
        }
        assert_eq!((memory.by_time.len(), memory.facts.len()), (1, 1));
        assert_eq!(memory.facts.end(), 2);
    }

    #[test]
    fn one_call_takes_out_so_many_facts_and_no_more() {
        let mut memory = memory(Bound::Each(usize::MAX));
        for key in 0..300 {
            memory.remember(0, key, at(1));
        }
        memory.expire(at(1), 100);
        assert_eq!((memory.facts.len(), memory.has_past(at(1))), (200, true));
        assert!((0..300).all(|key| !knows(&memory, 0, key, 1)));
    }
}
