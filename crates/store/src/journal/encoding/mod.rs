//! The encoding of the rows of a journal.
//!
//! The rows are protobuf messages, so that a later version can add fields and still read old rows.
//! Each row has the content of a [`Change`](lease::Change).

mod leases;
mod operators;
mod remembered;

use lease::{LeaseId, Used};
use prost::Message;

pub(crate) use leases::{BorrowedAsRow, LeaseRow};
pub(crate) use operators::{AuditRow, OverrideRow, subject, subject_number};
pub(crate) use remembered::RememberedRow;

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

/// The usage of one organization and metric.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct UsedRow {
    #[prost(uint32, tag = "1")]
    pub(crate) day: u32,
    #[prost(double, tag = "2")]
    pub(crate) in_day: f64,
    #[prost(uint32, tag = "3")]
    pub(crate) month: u32,
    #[prost(double, tag = "4")]
    pub(crate) in_month: f64,
}

impl From<Used> for UsedRow {
    fn from(used: Used) -> Self {
        let Used { day: (day, in_day), month: (month, in_month) } = used;
        Self { day, in_day, month, in_month }
    }
}

impl UsedRow {
    pub(crate) fn read(row: &[u8]) -> Result<Used, BadRow> {
        let row = Self::decode(row).map_err(|_| BadRow { table: "usage" })?;
        Ok(Used { day: (row.day, row.in_day), month: (row.month, row.in_month) })
    }
}
