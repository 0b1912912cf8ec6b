//! One lease in the table.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::id::{LeaseId, Secret};
use crate::lease::{Kind, whole_milliseconds};
use crate::slab::NONE;

use super::links::Links;

/// One live lease. The records with these numbers have the names that it counts against.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Not zero, so that an empty slot needs no room of its own.
    pub(crate) serial: NonZeroU64,
    pub(crate) granted_at: Timestamp,
    /// When it ends without a keep-alive, or whatever happens while it lingers.
    pub(crate) ends_at: Timestamp,
    pub(crate) secret: Secret,
    pub(super) ttl_ms: u32,
    pub(super) pool: u32,
    pub(super) key: u32,
    /// Its (trace, pool) record, or [`NONE`] without a trace.
    pub(super) cell: u32,
    /// The number under which its borrow id is remembered; [`NONE`] without a borrow id. The number
    /// may stand for another borrow id by now.
    pub(crate) borrow: u32,
    /// The indexer in the lower bits, and the flags below: in a table of a million leases 8 bytes count.
    pub(super) flags_and_indexer: u32,
    pub(super) in_pool: Links,
    pub(super) in_trace: Links,
}

/// Stands for no indexer in particular; numbers of indexers are lower.
pub(crate) const ANYBODY: u32 = IS_UNNAMED - 1;
/// Its service had no entry in the policy when it was granted.
const IS_UNNAMED: u32 = 1 << 29;
const IS_WORKER: u32 = 1 << 30;
const LINGERS: u32 = 1 << 31;

impl Entry {
    /// A lease that is in no list yet.
    pub(super) fn new(new: NewLease, indexer: u32, pool: u32, key: u32, cell: u32) -> Self {
        Self {
            serial: new.serial,
            granted_at: new.granted_at,
            ends_at: new.ends_at,
            secret: new.secret,
            ttl_ms: whole_milliseconds(new.ttl),
            pool,
            key,
            cell,
            borrow: NONE,
            flags_and_indexer: indexer
                | if new.kind == Kind::Worker { IS_WORKER } else { 0 }
                | if new.unnamed { IS_UNNAMED } else { 0 },
            in_pool: Links::NONE,
            in_trace: Links::NONE,
        }
    }

    pub(crate) const fn id(&self, slot: u32) -> LeaseId {
        LeaseId::new(slot, self.serial.get(), self.secret)
    }

    pub(crate) const fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms as u64)
    }

    pub(crate) const fn kind(&self) -> Kind {
        if self.flags_and_indexer & IS_WORKER == 0 { Kind::Session } else { Kind::Worker }
    }

    pub(crate) const fn lingers(&self) -> bool {
        self.flags_and_indexer & LINGERS != 0
    }

    /// Gives the lease its full TTL again, and answers that TTL.
    pub(crate) fn extend(&mut self, now: Timestamp) -> Duration {
        let ttl = self.ttl();
        // The end only moves later, so the timer finds it where it looks already. The end of a
        // lease that came back from a restart may be a little later already.
        self.ends_at = self.ends_at.max(now + ttl);
        ttl
    }

    /// Lets the lease end at `until` and at no other time.
    pub(crate) const fn linger(&mut self, until: Timestamp) {
        self.flags_and_indexer |= LINGERS;
        self.ends_at = until;
    }

    pub(super) const fn is_unnamed(&self) -> bool {
        self.flags_and_indexer & IS_UNNAMED != 0
    }

    pub(crate) const fn indexer(&self) -> u32 {
        self.flags_and_indexer & ANYBODY
    }
}

/// A lease to insert.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewLease {
    pub(crate) serial: NonZeroU64,
    pub(crate) secret: Secret,
    pub(crate) kind: Kind,
    pub(crate) granted_at: Timestamp,
    pub(crate) ends_at: Timestamp,
    pub(crate) ttl: Duration,
    /// Whether its service has no entry in the policy, as far as is known.
    pub(crate) unnamed: bool,
}
