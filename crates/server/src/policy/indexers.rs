//! Who may call: indexers, known by the SHA-256 of their keys.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::ServiceId;
use super::file::Digest;

/// An indexer: a party that runs streaming services and borrows for them.
#[derive(Debug)]
pub struct Indexer {
    name: Box<str>,
    services: Option<Box<[ServiceId]>>,
}

impl Indexer {
    /// An indexer called `name` that may use `services`, or all of them.
    pub(super) fn new(name: Box<str>, services: Option<Box<[ServiceId]>>) -> Self {
        Self { name, services }
    }

    /// Its name, which its leases belong to. Keys may change, the name stays.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it may use the service.
    pub fn may_use(&self, service: ServiceId) -> bool {
        self.services.as_ref().is_none_or(|services| services.contains(&service))
    }
}

/// The indexers of a policy, found by their keys.
#[derive(Debug, Default)]
pub(super) struct Indexers {
    indexers: Vec<Indexer>,
    by_digest: HashMap<u64, (Digest, usize), RandomState>,
}

impl Indexers {
    /// Adds an indexer. `Err` with the index of the one that has one of the digests already.
    pub(super) fn add(&mut self, indexer: Indexer, digests: &[Digest]) -> Result<(), usize> {
        let index = self.indexers.len();
        self.indexers.push(indexer);
        for digest in digests {
            // Two digests that agree in 64 bits are the same key for every practical purpose.
            if let Some((_, other)) = self.by_digest.insert(head(&digest.0), (*digest, index)) {
                return Err(other);
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.indexers.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Indexer> {
        self.indexers.iter()
    }

    pub(super) fn identify(&self, key: Option<&[u8]>) -> Result<Option<&Indexer>, Unauthenticated> {
        if self.indexers.is_empty() {
            return Ok(None);
        }
        let key = key.ok_or(Unauthenticated::NoKey)?;
        let shown: [u8; 32] = Sha256::digest(key).into();
        // The table is looked up by a part of the digest, whose timing tells nothing about a key
        // that is not known already; the whole digest is compared in constant time.
        match self.by_digest.get(&head(&shown)) {
            Some((digest, index)) if bool::from(digest.0.ct_eq(&shown)) => {
                Ok(Some(&self.indexers[*index]))
            }
            _ => Err(Unauthenticated::UnknownKey),
        }
    }
}

fn head(digest: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// A call that shows no key of an indexer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// There is no key at all.
    #[error("an indexer key is needed, in x-api-key or as authorization: Bearer")]
    NoKey,
    /// The key is nobody's.
    #[error("the indexer key is not known")]
    UnknownKey,
}
