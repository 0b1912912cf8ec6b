//! Records with stable numbers, found by their keys.

use std::hash::{BuildHasher as _, Hash};

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::slab::{NONE, Slab};

/// A record that contains its own key.
pub(crate) trait Record {
    type Key<'a>: Eq + Hash
    where
        Self: 'a;

    fn key(&self) -> Self::Key<'_>;

    /// How many bytes of ids it keeps.
    fn id_bytes(&self) -> u64 {
        0
    }
}

/// Records by number and by key. The index keeps numbers alone, so a key is stored once.
#[derive(Debug)]
pub(crate) struct Records<R> {
    slab: Slab<R>,
    index: HashTable<u32>,
    hasher: FixedState,
    id_bytes: u64,
}

impl<R: Record> Records<R> {
    pub(crate) fn new(hasher: &FixedState) -> Self {
        Self { slab: Slab::new(), index: HashTable::new(), hasher: hasher.clone(), id_bytes: 0 }
    }

    /// The number of the record of that key, or [`NONE`].
    pub(crate) fn find<'a>(&'a self, key: R::Key<'a>) -> u32 {
        let hash = self.hasher.hash_one(&key);
        self.index.find(hash, |&at| self.slab[at].key() == key).map_or(NONE, |&at| at)
    }

    /// The numbers of all records of that key, where several may have one key.
    pub(crate) fn all<'a>(&'a self, key: R::Key<'a>) -> impl Iterator<Item = u32> {
        let hash = self.hasher.hash_one(&key);
        self.index.iter_hash(hash).copied().filter(move |&at| self.slab[at].key() == key)
    }

    pub(crate) fn insert(&mut self, record: R) -> u32 {
        let Self { slab, index, hasher, id_bytes } = self;
        let hash = hasher.hash_one(record.key());
        *id_bytes += record.id_bytes();
        let at = slab.insert(record);
        index.insert_unique(hash, at, |&at| hasher.hash_one(slab[at].key()));
        at
    }

    pub(crate) fn remove(&mut self, at: u32) -> Option<R> {
        let record = self.slab.remove(at)?;
        self.id_bytes -= record.id_bytes();
        let hash = self.hasher.hash_one(record.key());
        if let Ok(found) = self.index.find_entry(hash, |&other| other == at) {
            found.remove();
        }
        Some(record)
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> Option<&mut R> {
        self.slab.get_mut(at)
    }

    /// How many bytes of ids all records keep.
    pub(crate) const fn id_bytes(&self) -> u64 {
        self.id_bytes
    }

    /// Whether every record is found under its key, and nothing else is.
    pub(crate) fn is_indexed(&self) -> bool {
        let id_bytes: u64 = self.slab.iter().map(|(_, record)| record.id_bytes()).sum();
        self.id_bytes == id_bytes
            && self.index.len() == self.slab.len()
            && self.slab.iter().all(|(at, record)| self.all(record.key()).any(|found| found == at))
    }
}

/// Records are read by number, as the values of the slab.
impl<R> std::ops::Deref for Records<R> {
    type Target = Slab<R>;

    fn deref(&self) -> &Slab<R> {
        &self.slab
    }
}

impl<R> std::ops::Index<u32> for Records<R> {
    type Output = R;

    fn index(&self, at: u32) -> &R {
        &self.slab[at]
    }
}

impl<R> std::ops::IndexMut<u32> for Records<R> {
    fn index_mut(&mut self, at: u32) -> &mut R {
        &mut self.slab[at]
    }
}
