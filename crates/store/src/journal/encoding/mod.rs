//! The encoding of the rows of a journal.
//!
//! The rows are protobuf messages, so that a later version can add fields and still read old rows.
//! Each row has the content of a [`Change`](lease::Change).

mod leases;
mod operators;
mod remembered;
mod usage;

use lease::LeaseId;

pub(crate) use leases::LeaseRow;
pub(crate) use operators::{AuditRow, OverrideRow, subject_number};
pub(crate) use remembered::RememberedRow;
pub(crate) use usage::UsedRow;

/// A row that cannot be decoded, or has an invalid value.
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
