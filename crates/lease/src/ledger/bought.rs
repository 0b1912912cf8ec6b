//! What is remembered of a borrow id.

use crate::id::{BorrowId, LeaseId};
use crate::records::Record;
use crate::slab::NONE;

/// What a borrow id bought. The halves of the id stand apart, because 128 bits in one would take up
/// more room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bought {
    pub(super) id: [u64; 2],
    /// The serial number of the lease; 0, which none has, when there is none any more.
    pub(super) serial: u64,
    /// The place of the lease.
    pub(super) slot: u32,
    /// Whether the borrow arrived before it was returned.
    pub(super) arrived: bool,
    /// [`Request::fingerprint`], if it arrived: whether a retry asks for the same.
    pub(super) fingerprint: u64,
}

impl Bought {
    /// A borrow id that buys nothing any more.
    pub(super) fn ended(id: BorrowId, fingerprint: Option<u64>) -> Self {
        Self {
            id: halves(id),
            serial: 0,
            slot: NONE,
            arrived: fingerprint.is_some(),
            fingerprint: fingerprint.unwrap_or(0),
        }
    }

    pub(super) fn lease(id: BorrowId, lease: LeaseId, fingerprint: u64) -> Self {
        let (serial, slot) = (lease.serial, lease.slot);
        Self { serial, slot, ..Self::ended(id, Some(fingerprint)) }
    }

    pub(super) const fn borrow_id(&self) -> BorrowId {
        let [high, low] = self.id;
        BorrowId((high as u128) << 64 | low as u128)
    }

    pub(super) fn fingerprint(&self) -> Option<u64> {
        self.arrived.then_some(self.fingerprint)
    }
}

impl Record for Bought {
    type Key<'a> = [u64; 2];

    fn key(&self) -> [u64; 2] {
        self.id
    }
}

pub(super) const fn halves(id: BorrowId) -> [u64; 2] {
    [(id.0 >> 64) as u64, id.0 as u64]
}
