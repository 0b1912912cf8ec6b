//! A table of slots with stable numbers.

/// The number of no slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Most records that one operation handles. It bounds how long a lock around the ledger is held.
pub const RECORDS_PER_HOLD: usize = 1_024;

/// Slots of one chunk, which is what one hold of the ledger's lock may read.
const CHUNK: usize = RECORDS_PER_HOLD;

/// A table whose values keep their slot until they are removed.
///
/// It grows by chunks: a million values are never copied to make room for one more, and no more
/// than one chunk is ever spare.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    chunks: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(slot) = self.free.pop() {
            *self.slot_mut(slot) = Some(value);
            return slot;
        }
        let slot = self.end();
        self.push(Some(value));
        slot
    }

    /// Puts a value back at the slot it had, growing the table up to it; gives it back when the
    /// slot is taken. [`Slab::find_free_slots`] has to follow before anything is inserted.
    pub(crate) fn insert_at(&mut self, slot: u32, value: T) -> Result<(), T> {
        while self.end() <= slot {
            self.push(None);
        }
        let place = self.slot_mut(slot);
        if place.is_some() {
            return Err(value);
        }
        *place = Some(value);
        self.len += 1;
        Ok(())
    }

    /// Finds the free slots again after [`Slab::insert_at`]; the lowest is used first.
    pub(crate) fn find_free_slots(&mut self) {
        self.free = (0..self.end()).rev().filter(|&slot| self.get(slot).is_none()).collect();
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let value =
            self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?.take()?;
        self.free.push(slot);
        self.len -= 1;
        Some(value)
    }

    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        self.chunks.get(slot as usize / CHUNK)?.get(slot as usize % CHUNK)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.chunks.get_mut(slot as usize / CHUNK)?.get_mut(slot as usize % CHUNK)?.as_mut()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let slots = self.chunks.iter().flatten().zip(0..);
        slots.filter_map(|(value, slot)| value.as_ref().map(|value| (slot, value)))
    }

    /// The values of the `part`-th [`RECORDS_PER_HOLD`] slots; `None` past the last slot.
    ///
    /// A value keeps its slot. So a walk from part to part sees each value that stays exactly once,
    /// whatever is inserted and removed meanwhile.
    pub(crate) fn part(&self, part: u32) -> Option<impl Iterator<Item = (u32, &T)>> {
        let chunk = self.chunks.get(part as usize)?;
        let slots = chunk.iter().zip(part * CHUNK as u32..);
        Some(slots.filter_map(|(value, slot)| value.as_ref().map(|value| (slot, value))))
    }

    /// One past the highest slot ever taken.
    pub(crate) fn end(&self) -> u32 {
        let full = self.chunks.len().saturating_sub(1) * CHUNK;
        u32::try_from(full + self.chunks.last().map_or(0, Vec::len)).unwrap_or(NONE)
    }

    fn push(&mut self, value: Option<T>) {
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(value),
            // The first chunk grows by itself, so that a small table stays small.
            None => self.chunks.push(vec![value]),
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(value);
                self.chunks.push(chunk);
            }
        }
    }

    fn slot_mut(&mut self, slot: u32) -> &mut Option<T> {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        self.get(slot).expect("the table only links slots that are taken")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        self.get_mut(slot).expect("the table only links slots that are taken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_reused_only_after_it_was_freed() {
        let mut slab = Slab::new();
        let slots: Vec<u32> = (0..CHUNK as u32 + 2).map(|value| slab.insert(value)).collect();
        assert_eq!(slots, (0..CHUNK as u32 + 2).collect::<Vec<_>>());
        assert_eq!(slab.remove(5), Some(5));
        assert_eq!(slab.remove(5), None);
        assert_eq!(slab.insert(99), 5);
        assert_eq!(
            (slab.len(), slab[5], slab[CHUNK as u32 + 1]),
            (CHUNK + 2, 99, CHUNK as u32 + 1)
        );
    }

    #[test]
    fn restored_values_keep_their_slots_and_the_gaps_are_used_first() {
        let mut slab = Slab::new();
        slab.insert_at(3, 'd').unwrap();
        slab.insert_at(1, 'b').unwrap();
        assert_eq!(slab.insert_at(3, 'x'), Err('x'));
        slab.find_free_slots();
        assert_eq!([slab.insert('a'), slab.insert('c'), slab.insert('e')], [0, 2, 4]);
        let all: String = slab.iter().map(|(_, value)| *value).collect();
        assert_eq!(all, "abcde");
    }
}
