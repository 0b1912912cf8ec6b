//! How leases and what is remembered beside them are written down.
//!
//! The rows are protobuf messages, so a later version can add to them and still read these. They
//! say what a [`Change`](lease::Change) says, under the serial number of the lease.

mod leases;
mod operators;
mod remembered;
mod usage;

use lease::LeaseId;

pub(crate) use leases::LeaseRow;
pub(crate) use operators::{AuditRow, OverrideRow, subject_number};
pub(crate) use remembered::RememberedRow;
pub(crate) use usage::UsedRow;

/// A row that says nothing sensible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of {table:?} cannot be read")]
pub(crate) struct BadRow {
    pub(crate) table: &'static str,
}

fn slot_and_secret(id: LeaseId) -> (u32, [u8; 12]) {
    let [_, _, _, _, _, _, _, _, a, b, c, d, secret @ ..] = id.to_bytes();
    (u32::from_be_bytes([a, b, c, d]), secret)
}

fn lease_id(serial: u64, slot: u32, secret: &[u8]) -> Option<LeaseId> {
    Some(LeaseId::new(slot, serial, secret.try_into().ok()?))
}
