//! What is remembered of a borrow under its borrow id.

use crate::id::{BorrowId, LeaseId};
use crate::records::Record;
use crate::slab::{NONE, Slab};
use crate::table::Entry;

/// A borrow id and its lease. The id is kept in two halves, because a `u128` needs more alignment and
/// so more memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct RememberedBorrow {
    pub(super) id: [u64; 2],
    /// The serial number of the lease; 0, which no lease has, once it has ended.
    pub(super) serial: u64,
    /// The slot of the lease.
    pub(super) slot: u32,
    /// Whether the borrow arrived; it may have been returned before that.
    pub(super) arrived: bool,
    /// [`Request::fingerprint`](crate::Request::fingerprint), if it arrived: a retry has to match it.
    pub(super) fingerprint: u64,
}

impl RememberedBorrow {
    /// A borrow id without a live lease.
    pub(super) fn ended(id: BorrowId, fingerprint: Option<u64>) -> Self {
        Self {
            id: id.halves(),
            serial: 0,
            slot: NONE,
            arrived: fingerprint.is_some(),
            fingerprint: fingerprint.unwrap_or(0),
        }
    }

    /// A borrow id whose lease is live.
    pub(super) fn live(id: BorrowId, lease: LeaseId, fingerprint: u64) -> Self {
        let (serial, slot) = (lease.serial, lease.slot);
        Self { serial, slot, ..Self::ended(id, Some(fingerprint)) }
    }

    /// The lease, while it is in the table.
    pub(super) fn lease_in<'t>(&self, leases: &'t Slab<Entry>) -> Option<&'t Entry> {
        leases.get(self.slot).filter(|entry| entry.serial.get() == self.serial)
    }

    pub(super) const fn borrow_id(&self) -> BorrowId {
        BorrowId::from_halves(self.id)
    }

    pub(super) fn fingerprint(&self) -> Option<u64> {
        self.arrived.then_some(self.fingerprint)
    }
}

impl Record for RememberedBorrow {
    type Key<'a> = [u64; 2];

    fn key(&self) -> [u64; 2] {
        self.id
    }
}
