//! The rows of usage.

use lease::Used;
use prost::Message;

use super::BadRow;

/// The usage of one organization and metric.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct UsedRow {
    #[prost(uint32, tag = "1")]
    day: u32,
    #[prost(double, tag = "2")]
    in_day: f64,
    #[prost(uint32, tag = "3")]
    month: u32,
    #[prost(double, tag = "4")]
    in_month: f64,
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
