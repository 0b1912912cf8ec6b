//! The rows of leases.

use std::time::Duration;

use lease::{BorrowId, BorrowedAs, Kind, Lease, Timestamp};
use prost::Message;

use super::{BadRow, lease_id, slot_and_secret};

/// One lease without its serial number, which is the key of the row, and without the end of its
/// lingering.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct LeaseRow {
    #[prost(uint32, tag = "1")]
    pub(crate) slot: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) secret: Vec<u8>,
    #[prost(bool, tag = "3")]
    pub(crate) worker: bool,
    #[prost(string, optional, tag = "4")]
    pub(crate) indexer: Option<String>,
    #[prost(string, tag = "5")]
    pub(crate) service: String,
    #[prost(string, tag = "6")]
    pub(crate) organization: String,
    #[prost(string, tag = "7")]
    pub(crate) api_key: String,
    #[prost(string, tag = "8")]
    pub(crate) trace: String,
    #[prost(fixed64, tag = "9")]
    pub(crate) granted_at: u64,
    #[prost(uint64, tag = "10")]
    pub(crate) ttl_nanos: u64,
    #[prost(message, optional, tag = "11")]
    pub(crate) borrowed_as: Option<BorrowedAsRow>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct BorrowedAsRow {
    #[prost(fixed64, tag = "1")]
    pub(crate) id_high: u64,
    #[prost(fixed64, tag = "2")]
    pub(crate) id_low: u64,
    #[prost(fixed64, tag = "3")]
    pub(crate) fingerprint: u64,
}

impl From<Lease> for LeaseRow {
    fn from(lease: Lease) -> Self {
        let (slot, secret) = slot_and_secret(lease.id);
        Self {
            slot,
            secret: secret.into(),
            worker: lease.kind == Kind::Worker,
            indexer: lease.indexer.map(String::from),
            service: lease.service.into(),
            organization: lease.organization.into(),
            api_key: lease.api_key.into(),
            trace: lease.trace.into(),
            granted_at: lease.granted_at.as_nanos(),
            ttl_nanos: u64::try_from(lease.ttl.as_nanos()).unwrap_or(u64::MAX),
            borrowed_as: lease.borrowed_as.map(|BorrowedAs { id, fingerprint }| {
                let [id_high, id_low] = id.halves();
                BorrowedAsRow { id_high, id_low, fingerprint }
            }),
        }
    }
}

impl LeaseRow {
    /// Reads the lease with the key `serial`. `lingers_until` is the end of its lingering, if any.
    pub(crate) fn read(
        serial: u64,
        row: &[u8],
        lingers_until: Option<u64>,
    ) -> Result<Lease, BadRow> {
        let row = Self::decode(row).map_err(|_| BadRow { table: "leases" })?;
        row.into_lease(serial, lingers_until)
    }

    /// The lease with the key `serial`. `lingers_until` is the end of its lingering, if any.
    pub(crate) fn into_lease(
        self,
        serial: u64,
        lingers_until: Option<u64>,
    ) -> Result<Lease, BadRow> {
        let bad = BadRow { table: "leases" };
        Ok(Lease {
            id: lease_id(serial, self.slot, &self.secret).ok_or(bad)?,
            kind: if self.worker { Kind::Worker } else { Kind::Session },
            indexer: self.indexer.map(Into::into),
            service: self.service.into(),
            organization: self.organization.into(),
            api_key: self.api_key.into(),
            trace: self.trace.into(),
            granted_at: Timestamp::from_nanos(self.granted_at),
            ttl: Duration::from_nanos(self.ttl_nanos),
            lingers_until: lingers_until.map(Timestamp::from_nanos),
            borrowed_as: self.borrowed_as.map(|row| BorrowedAs {
                id: BorrowId::from_halves([row.id_high, row.id_low]),
                fingerprint: row.fingerprint,
            }),
        })
    }
}
