//! Indexers, identified by the SHA-256 of their keys.

use std::collections::BTreeSet;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::digests::Digest;
use crate::services::ServiceId;

/// An indexer: a party that runs streaming services and borrows for them.
#[derive(Debug)]
pub struct Indexer {
    pub(crate) name: Box<str>,
    /// The services that it may use; `None` for all.
    pub(crate) services: Option<BTreeSet<ServiceId>>,
}

impl Indexer {
    /// Its name, which owns its leases. Keys may change; the name does not.
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
pub(crate) struct Indexers {
    indexers: Vec<Indexer>,
    by_digest: HashMap<u64, (Digest, usize), RandomState>,
}

impl Indexers {
    /// Adds an indexer and returns its number.
    pub(crate) fn add(&mut self, indexer: Indexer) -> usize {
        self.indexers.push(indexer);
        self.indexers.len() - 1
    }

    /// Adds a key of the indexer of that number. If another indexer has the key already, returns its
    /// number as the error.
    pub(crate) fn add_key(&mut self, indexer: usize, digest: Digest) -> Result<(), usize> {
        // In practice two digests with the same first 64 bits belong to the same key.
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
        // An unset variable in a script sends a key of blanks.
        let key = key.filter(|key| !key.trim_ascii().is_empty()).ok_or(Unauthenticated::NoKey)?;
        let shown: [u8; 32] = Sha256::digest(key).into();
        // The table is looked up by a part of the digest. The timing reveals nothing about an unknown
        // key, since the whole digest is compared in constant time.
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

/// Why a call is not authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// The call has no key.
    #[error("an indexer key is needed, in x-api-key or as authorization: Bearer")]
    NoKey,
    /// The key belongs to no indexer.
    #[error("the indexer key is not known")]
    UnknownKey,
}
