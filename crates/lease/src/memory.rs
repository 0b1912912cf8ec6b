//! Facts that are remembered for a while.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::Hash;

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::types::Timestamp;

/// A bounded map that forgets each key at its own time, and the oldest first when it is full.
#[derive(Debug)]
pub(crate) struct Memory<K, V> {
    facts: HashMap<K, (V, Timestamp), FixedState>,
    by_time: BinaryHeap<Reverse<(Timestamp, K)>>,
    limit: usize,
}

impl<K: Clone + Eq + Hash + Ord, V> Memory<K, V> {
    pub(crate) fn new(limit: usize, hasher: &FixedState) -> Self {
        Self { facts: HashMap::with_hasher(hasher.clone()), by_time: BinaryHeap::new(), limit }
    }

    /// Remembers `value` until `until`, in place of what was remembered under `key`.
    pub(crate) fn insert(&mut self, key: K, value: V, until: Timestamp) {
        self.by_time.push(Reverse((until, key.clone())));
        self.facts.insert(key, (value, until));
        while self.by_time.len() > self.limit {
            self.forget_first();
        }
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        Q: Hash + hashbrown::Equivalent<K> + ?Sized,
    {
        self.facts.get(key).map(|(value, _)| value)
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.facts.remove(key);
    }

    /// Forgets what is past at `now`.
    pub(crate) fn expire(&mut self, now: Timestamp) {
        while self.by_time.peek().is_some_and(|Reverse((until, _))| *until <= now) {
            self.forget_first();
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V, Timestamp)> {
        self.facts.iter().map(|(key, (value, until))| (key, value, *until))
    }

    fn forget_first(&mut self) {
        if let Some(Reverse((until, key))) = self.by_time.pop() {
            // A key that was remembered anew has a later time of its own in the heap.
            if self.facts.get(&key).is_some_and(|(_, latest)| *latest == until) {
                self.facts.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    #[test]
    fn a_fact_is_forgotten_at_its_time_and_one_told_again_at_the_later_time() {
        let mut memory = Memory::new(10, &FixedState::with_seed(1));
        memory.insert(1, 'a', at(5));
        memory.insert(2, 'b', at(5));
        memory.insert(2, 'c', at(9));
        memory.expire(at(5));
        assert_eq!((memory.get(&1), memory.get(&2)), (None, Some(&'c')));
        memory.expire(at(9));
        assert_eq!(memory.get(&2), None);
    }

    #[test]
    fn a_full_memory_forgets_the_oldest() {
        let mut memory = Memory::new(2, &FixedState::with_seed(1));
        for key in 1..=3 {
            memory.insert(key, (), at(key));
        }
        assert_eq!(memory.iter().map(|(key, (), _)| *key).max(), Some(3));
        assert_eq!((memory.get(&1), memory.iter().count()), (None, 2));
    }
}
