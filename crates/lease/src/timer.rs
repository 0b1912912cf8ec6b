//! When which slot has to be checked.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::clock::Timestamp;
use crate::slab::NONE;

/// A bucket covers 2^26 ns, about 67 ms; the ring of them about 69 s.
const BUCKET_BITS: u32 = 26;
const BUCKETS: u32 = 1 << 10;

/// The place of a slot that is not in the ring.
const NOWHERE: u16 = u16::MAX;
const SOON: u16 = u16::MAX - 1;

/// Tells which slots may have ended, in the order of their ends.
///
/// A ring of buckets, refiled lazily: a keep-alive moves a lease's end without touching the timer,
/// and the slot is filed again when its old bucket becomes current. The slots of the current bucket
/// are in a small heap, so ends are exact to the nanosecond. Every slot is in one place at most; a
/// freed slot keeps its place for the next lease that gets the slot. A slot costs 12 bytes.
#[derive(Debug)]
pub(crate) struct Timer {
    /// The current bucket: all slots due in it or before are in `soon`, except those that are still
    /// filed in it.
    current: u64,
    /// The first slot of each bucket of the ring.
    heads: Vec<u32>,
    links: Vec<Link>,
    soon: BinaryHeap<Reverse<(Timestamp, u32)>>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    prev: u32,
    /// The place of the slot in the ring, or [`SOON`] or [`NOWHERE`].
    place: u16,
}

const fn bucket_of(at: Timestamp) -> u64 {
    at.as_nanos() >> BUCKET_BITS
}

impl Timer {
    pub(crate) fn new() -> Self {
        Self {
            current: 0,
            heads: vec![NONE; BUCKETS as usize],
            links: Vec::new(),
            soon: BinaryHeap::new(),
        }
    }

    /// Makes sure that `slot` is checked no later than `at`.
    pub(crate) fn set(&mut self, slot: u32, at: Timestamp) {
        let index = slot as usize;
        if index >= self.links.len() {
            let nowhere = Link { next: NONE, prev: NONE, place: NOWHERE };
            self.links.resize(index + 1, nowhere);
        }
        // A slot that ends after the ring is filed in the last bucket, and checked again there.
        let bucket = bucket_of(at).min(self.current + u64::from(BUCKETS) - 1);
        let filed = self.links[index].place;
        if bucket <= self.current {
            if filed < SOON {
                self.unlink(slot);
            }
            self.links[index].place = SOON;
            self.soon.push(Reverse((at, slot)));
        } else if filed == NOWHERE {
            self.link(slot, place(bucket));
        } else if filed != SOON && bucket < self.bucket_at(filed) {
            self.unlink(slot);
            self.link(slot, place(bucket));
        }
    }

    /// The next bucket that has this place in the ring.
    fn bucket_at(&self, at: u16) -> u64 {
        let first = self.current + 1;
        first + u64::from(at.wrapping_sub(place(first))) % u64::from(BUCKETS)
    }

    /// Starts an empty timer at `now`, so that no earlier bucket is checked.
    pub(crate) fn start_at(&mut self, now: Timestamp) {
        debug_assert!(self.next().is_none(), "nothing is filed before a timer starts");
        self.current = bucket_of(now);
    }

    /// Takes the next slot whose end is not after `now`. `end_of` returns the end of a slot.
    ///
    /// Slots come in the order of their ends. `end_of` answers `None` for a free slot. Every slot
    /// that is checked takes one off `allowance`, whether it has ended or is only filed again;
    /// `None` with nothing left of it means that there may be more.
    pub(crate) fn pop(
        &mut self,
        now: Timestamp,
        allowance: &mut usize,
        end_of: impl Fn(u32) -> Option<Timestamp>,
    ) -> Option<u32> {
        loop {
            self.file_current(allowance, &end_of);
            while let Some(&Reverse((at, slot))) = self.soon.peek() {
                if at > now {
                    return None;
                }
                *allowance = allowance.checked_sub(1)?;
                self.soon.pop();
                if self.links[slot as usize].place == SOON {
                    self.links[slot as usize].place = NOWHERE;
                }
                match end_of(slot) {
                    Some(end) if end == at => return Some(slot),
                    Some(end) => self.set(slot, end),
                    None => {}
                }
            }
            if *allowance == 0 || bucket_of(now) <= self.current {
                return None;
            }
            let last = bucket_of(now).min(self.current + u64::from(BUCKETS) - 1);
            self.current = self.next_filled(last).unwrap_or(bucket_of(now));
        }
    }

    /// Whether [`Timer::pop`] may find something at `now`, or has slots to file again before.
    pub(crate) fn is_behind(&self, now: Timestamp) -> bool {
        bucket_of(now) > self.current
            || self.heads[usize::from(place(self.current))] != NONE
            || self.soon.peek().is_some_and(|&Reverse((at, _))| at <= now)
    }

    /// A time at which [`Timer::pop`] may find something; never later than the first end.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        let start = |bucket: u64| Timestamp::from_nanos(bucket << BUCKET_BITS);
        if self.heads[usize::from(place(self.current))] != NONE {
            return Some(start(self.current));
        }
        if let Some(&Reverse((at, _))) = self.soon.peek() {
            return Some(at);
        }
        self.next_filled(self.current + u64::from(BUCKETS) - 1).map(start)
    }

    /// The next bucket to come, up to `last`, that holds a slot.
    fn next_filled(&self, last: u64) -> Option<u64> {
        (self.current + 1..=last).find(|&bucket| self.heads[usize::from(place(bucket))] != NONE)
    }

    /// Files the slots of the current bucket again: those that end in it are in `soon` then.
    fn file_current(&mut self, allowance: &mut usize, end_of: &impl Fn(u32) -> Option<Timestamp>) {
        while *allowance > 0 {
            let slot = self.heads[usize::from(place(self.current))];
            if slot == NONE {
                return;
            }
            *allowance -= 1;
            self.unlink(slot);
            if let Some(end) = end_of(slot) {
                self.set(slot, end);
            }
        }
    }

    fn link(&mut self, slot: u32, place: u16) {
        let head = std::mem::replace(&mut self.heads[usize::from(place)], slot);
        if head != NONE {
            self.links[head as usize].prev = slot;
        }
        self.links[slot as usize] = Link { next: head, prev: NONE, place };
    }

    fn unlink(&mut self, slot: u32) {
        let Link { next, prev, place } = self.links[slot as usize];
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        if prev == NONE {
            self.heads[usize::from(place)] = next;
        } else {
            self.links[prev as usize].next = next;
        }
        self.links[slot as usize].place = NOWHERE;
    }
}

/// The place of a bucket in the ring.
const fn place(bucket: u64) -> u16 {
    (bucket % BUCKETS as u64) as u16
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_slot_kept_alive_is_found_at_its_new_end_and_not_before() {
        let mut timer = Timer::new();
        timer.set(0, Timestamp::from_nanos(SECOND));
        let end = Timestamp::from_nanos(600 * SECOND);
        for now in (0..600).map(|second| Timestamp::from_nanos(second * SECOND)) {
            assert_eq!(timer.pop(now, &mut 9, |_| Some(end)), None);
        }
        assert_eq!(timer.pop(end, &mut 9, |_| Some(end)), Some(0));
    }

    proptest! {
        /// Compared with a map from slot to end: after any operations and any jumps of time,
        /// exactly the ended slots come out, in the order of their ends.
        #[test]
        fn exactly_the_ended_slots_come_out_in_order(
            steps in prop::collection::vec((0..6u32, 0..3u8, 0..200u64, 0..30_000u64), 1..120),
            at_once in 1..5usize,
        ) {
            let mut timer = Timer::new();
            let ends = RefCell::new(BTreeMap::new());
            let mut now = 0;
            for (slot, action, seconds, forward) in steps {
                let end = Timestamp::from_nanos(now + seconds * SECOND / 2 + 1);
                match action {
                    0 => { ends.borrow_mut().remove(&slot); }
                    // A keep-alive: the end moves later, and the timer is not set again.
                    1 if ends.borrow().get(&slot).is_some_and(|old| *old <= end) => {
                        ends.borrow_mut().insert(slot, end);
                    }
                    _ => {
                        ends.borrow_mut().insert(slot, end);
                        timer.set(slot, end);
                    }
                }
                now += forward * SECOND / 100;
                let time = Timestamp::from_nanos(now);
                let first = ends.borrow().values().min().copied();
                if let Some(first) = first {
                    prop_assert!(timer.next().is_some_and(|next| next <= first));
                }
                let mut previous = Timestamp::ZERO;
                let mut rounds = 0;
                while timer.is_behind(time) {
                    let mut allowance = at_once;
                    while let Some(slot) =
                        timer.pop(time, &mut allowance, |slot| ends.borrow().get(&slot).copied())
                    {
                        let end = ends.borrow_mut().remove(&slot).expect("a slot comes out once");
                        prop_assert!(previous <= end && end <= time);
                        previous = end;
                    }
                    rounds += 1;
                    prop_assert!(rounds < 1_000, "every round gets on");
                }
                prop_assert!(ends.borrow().values().all(|end| *end > time));
            }
        }
    }
}
