//! Who may call: indexers, known by the SHA-256 of their keys.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::digests::Digest;
use crate::service_id::ServiceId;

/// An indexer: a party that runs streaming services and borrows for them.
#[derive(Debug)]
pub struct Indexer {
    name: Box<str>,
    /// In the order of their ids, to be found without looking at each.
    services: Option<Box<[ServiceId]>>,
}

impl Indexer {
    /// An indexer called `name` that may use `services`, or all of them.
    pub(crate) fn new(name: Box<str>, mut services: Option<Box<[ServiceId]>>) -> Self {
        if let Some(services) = &mut services {
            services.sort_unstable();
        }
        Self { name, services }
    }

    /// Its name, which its leases belong to. Keys may change, the name stays.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it may use the service.
    pub fn may_use(&self, service: ServiceId) -> bool {
        self.services.as_ref().is_none_or(|services| services.binary_search(&service).is_ok())
    }
}

/// The indexers of a policy, found by their keys.
#[derive(Debug, Default)]
pub(crate) struct Indexers {
    indexers: Vec<Indexer>,
    by_digest: HashMap<u64, (Digest, usize), RandomState>,
}

impl Indexers {
    /// Adds an indexer, and answers its number.
    pub(crate) fn add(&mut self, indexer: Indexer) -> usize {
        self.indexers.push(indexer);
        self.indexers.len() - 1
    }

    /// Gives a key to the indexer of that number. `Err` with the number of the one that has it.
    pub(crate) fn add_key(&mut self, indexer: usize, digest: Digest) -> Result<(), usize> {
        // Two digests that agree in 64 bits are the same key for every practical purpose.
        match self.by_digest.insert(head(&digest.0), (digest, indexer)) {
            Some((_, other)) => Err(other),
            None => Ok(()),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.indexers.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Indexer> {
        self.indexers.iter()
    }

    pub(crate) fn identify(&self, key: Option<&[u8]>) -> Result<Option<&Indexer>, Unauthenticated> {
        if self.indexers.is_empty() {
            return Ok(None);
        }
        // A key of blanks is what an unset variable leaves in a header.
        let key = key.filter(|key| !key.trim_ascii().is_empty()).ok_or(Unauthenticated::NoKey)?;
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
