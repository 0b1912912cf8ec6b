//! The rows of facts that are remembered for a time. Their keys sort them by the end of this time.

use std::sync::Arc;

use lease::{
    BorrowId, BudgetSpent, Change, Period, Reason, Revocation, RevokedFor, Timestamp, TraceDigest,
    TraceEnd, WallTime,
};
use prost::{Message, Oneof};

use super::{BadRow, lease_id, slot_and_secret};

/// A fact that is remembered until a time. The key of the row starts with this time.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RememberedRow {
    #[prost(oneof = "Remembered", tags = "1, 2, 3, 4")]
    fact: Option<Remembered>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Remembered {
    #[prost(message, tag = "1")]
    Revoked(RevokedRow),
    #[prost(message, tag = "2")]
    Reported(ReportedRow),
    #[prost(message, tag = "3")]
    BorrowEnded(BorrowEndedRow),
    #[prost(message, tag = "4")]
    TraceEnded(TraceEndedRow),
}

#[derive(Clone, PartialEq, Message)]
struct RevokedRow {
    #[prost(fixed64, tag = "1")]
    serial: u64,
    #[prost(uint32, tag = "2")]
    slot: u32,
    #[prost(bytes = "vec", tag = "3")]
    secret: Vec<u8>,
    #[prost(string, optional, tag = "4")]
    indexer: Option<String>,
    #[prost(uint32, tag = "5")]
    reason: u32,
    /// The trace of a session; 16 bytes. Rows of earlier versions lack this and the next field.
    #[prost(bytes = "vec", optional, tag = "6")]
    trace: Option<Vec<u8>>,
    /// The budget, if the reason is a spent budget.
    #[prost(message, optional, tag = "7")]
    spent: Option<SpentRow>,
}

#[derive(Clone, PartialEq, Message)]
struct SpentRow {
    #[prost(string, tag = "1")]
    metric: String,
    #[prost(double, tag = "2")]
    used: f64,
    #[prost(double, tag = "3")]
    amount: f64,
    #[prost(uint32, tag = "4")]
    per: u32,
    #[prost(int64, tag = "5")]
    resets_at: i64,
}

impl From<&BudgetSpent> for SpentRow {
    fn from(spent: &BudgetSpent) -> Self {
        let BudgetSpent { metric, used, amount, per, resets_at } = spent;
        let (metric, per) = (String::from(&**metric), period_number(*per));
        Self { metric, used: *used, amount: *amount, per, resets_at: resets_at.as_unix() }
    }
}

impl SpentRow {
    fn read(self) -> Option<BudgetSpent> {
        let Self { metric, used, amount, per, resets_at } = self;
        let (per, resets_at) = (period(per)?, WallTime::from_unix(resets_at));
        Some(BudgetSpent { metric: metric.into(), used, amount, per, resets_at })
    }
}

impl RevokedRow {
    fn read(self, until: Timestamp) -> Option<Revocation> {
        let reason = reason(self.reason)?;
        let spent = match self.spent {
            Some(spent) => Some(Arc::new(spent.read()?)),
            None => None,
        };
        let trace = self.trace.map(TryInto::try_into).transpose().ok()?;
        Some(Revocation {
            id: lease_id(self.serial, self.slot, &self.secret)?,
            indexer: self.indexer.map(Into::into),
            why: RevokedFor { reason, spent },
            trace: trace.map(TraceDigest::from_bytes),
            until,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct ReportedRow {
    #[prost(string, optional, tag = "1")]
    indexer: Option<String>,
    #[prost(string, tag = "2")]
    key: String,
    /// Rows of earlier versions, which counted a report in one part, lack it.
    #[prost(fixed64, optional, tag = "3")]
    fingerprint: Option<u64>,
    #[prost(uint64, tag = "4")]
    applied: u64,
}

#[derive(Clone, PartialEq, Message)]
struct BorrowEndedRow {
    #[prost(string, optional, tag = "1")]
    indexer: Option<String>,
    #[prost(fixed64, tag = "2")]
    id_high: u64,
    #[prost(fixed64, tag = "3")]
    id_low: u64,
    #[prost(fixed64, optional, tag = "4")]
    fingerprint: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct TraceEndedRow {
    #[prost(string, optional, tag = "1")]
    indexer: Option<String>,
    #[prost(string, tag = "2")]
    organization: String,
    #[prost(string, tag = "3")]
    trace: String,
    #[prost(fixed64, tag = "4")]
    before: u64,
}

impl RememberedRow {
    /// The key and the row of the end of a trace. It has no end of its own: it is kept until it is
    /// removed.
    pub(crate) fn trace_ended(end: TraceEnd) -> (Vec<u8>, Self) {
        let mut key = Self::keys_up_to(Timestamp::from_nanos(u64::MAX));
        let TraceEnd { indexer, organization, trace, before } = end;
        // UTF-8 text contains neither 0xfe nor 0xff; see `reported`.
        key.push(0xfe);
        key.extend(before.to_be_bytes());
        for text in [indexer.as_deref().unwrap_or_default(), &organization, &trace] {
            key.push(0xff);
            key.extend(text.as_bytes());
        }
        let row = TraceEndedRow {
            indexer: indexer.map(String::from),
            organization: organization.into(),
            trace: trace.into(),
            before,
        };
        (key, Self { fact: Some(Remembered::TraceEnded(row)) })
    }

    /// The key and the row of a revocation.
    pub(crate) fn revoked(revocation: Revocation) -> (Vec<u8>, Self) {
        let Revocation { id, indexer, why, trace, until } = revocation;
        let mut key = Self::keys_up_to(until);
        key.extend(id.serial().to_be_bytes());
        let (slot, secret) = slot_and_secret(id);
        let fact = Remembered::Revoked(RevokedRow {
            serial: id.serial(),
            slot,
            secret: secret.into(),
            indexer: indexer.map(String::from),
            reason: reason_number(why.reason),
            trace: trace.map(|trace| trace.to_bytes().into()),
            spent: why.spent.as_deref().map(SpentRow::from),
        });
        (key, Self { fact: Some(fact) })
    }

    /// The key and the row of a counted report.
    pub(crate) fn reported(
        indexer: Option<Box<str>>,
        report: Box<str>,
        until: Timestamp,
        fingerprint: Option<u64>,
        applied: u64,
    ) -> (Vec<u8>, Self) {
        let mut key = Self::keys_up_to(until);
        // 0xff is in no UTF-8 text, so it separates the two texts. At the start it separates reports
        // from serial numbers: the first serial number that begins with it is 2^63 grants away.
        key.push(0xff);
        key.extend(indexer.as_deref().unwrap_or_default().as_bytes());
        key.push(0xff);
        key.extend(report.as_bytes());
        let (indexer, report) = (indexer.map(String::from), report.into());
        let row = ReportedRow { indexer, key: report, fingerprint, applied };
        (key, Self { fact: Some(Remembered::Reported(row)) })
    }

    /// The key and the row of a borrow id that grants nothing any more.
    pub(crate) fn borrow_ended(
        indexer: Option<Box<str>>,
        id: BorrowId,
        fingerprint: Option<u64>,
        until: Timestamp,
    ) -> (Vec<u8>, Self) {
        let mut key = Self::keys_up_to(until);
        // 0xfe is in no UTF-8 text either, and no serial number begins with it.
        key.push(0xfe);
        key.extend(indexer.as_deref().unwrap_or_default().as_bytes());
        key.push(0xff);
        key.extend(id.0.to_be_bytes());
        let (indexer, [id_high, id_low]) = (indexer.map(String::from), id.halves());
        let row = BorrowEndedRow { indexer, id_high, id_low, fingerprint };
        (key, Self { fact: Some(Remembered::BorrowEnded(row)) })
    }

    /// What the fact says, for people: its kind, the indexer and what it is about.
    pub(crate) fn describe(&self) -> (&'static str, Option<&str>, String) {
        match &self.fact {
            Some(Remembered::Revoked(row)) => {
                ("revoked", row.indexer.as_deref(), row.serial.to_string())
            }
            Some(Remembered::Reported(row)) => {
                ("reported", row.indexer.as_deref(), row.key.clone())
            }
            Some(Remembered::BorrowEnded(row)) => {
                let id = format!("{:016x}{:016x}", row.id_high, row.id_low);
                ("borrow ended", row.indexer.as_deref(), id)
            }
            Some(Remembered::TraceEnded(row)) => {
                let subject = format!("{}/{}", row.organization, row.trace);
                ("trace ended", row.indexer.as_deref(), subject)
            }
            None => ("", None, String::new()),
        }
    }

    /// The greatest key of facts that need not be remembered at `time`.
    pub(crate) fn keys_up_to(time: Timestamp) -> Vec<u8> {
        let mut key = Vec::with_capacity(24);
        key.extend(time.as_nanos().to_be_bytes());
        key
    }

    /// Reads the fact with this key, and until when it is remembered.
    pub(crate) fn read(key: &[u8], row: &[u8]) -> Result<(Timestamp, Change), BadRow> {
        let bad = BadRow { table: "remembered" };
        let until = key.first_chunk().ok_or(bad)?;
        let until = Timestamp::from_nanos(u64::from_be_bytes(*until));
        let change = match Self::decode(row).map_err(|_| bad)?.fact.ok_or(bad)? {
            Remembered::Revoked(row) => Change::Revoked(Box::new(row.read(until).ok_or(bad)?)),
            Remembered::Reported(row) => Change::Reported {
                indexer: row.indexer.map(Into::into),
                key: row.key.into(),
                until,
                fingerprint: row.fingerprint,
                applied: row.applied,
            },
            Remembered::BorrowEnded(row) => Change::BorrowEnded {
                indexer: row.indexer.map(Into::into),
                id: BorrowId::from_halves([row.id_high, row.id_low]),
                fingerprint: row.fingerprint,
                until,
            },
            Remembered::TraceEnded(row) => Change::TraceEnded(Box::new(TraceEnd {
                indexer: row.indexer.map(Into::into),
                organization: row.organization.into(),
                trace: row.trace.into(),
                before: row.before,
            })),
        };
        Ok((until, change))
    }
}

/// The number of a period in rows. Numbers never change their meaning.
const fn period_number(per: Period) -> u32 {
    match per {
        Period::Day => 1,
        Period::Month => 2,
    }
}

fn period(number: u32) -> Option<Period> {
    [Period::Day, Period::Month].into_iter().find(|&per| period_number(per) == number)
}

/// The number of a reason in rows. Numbers never change their meaning.
fn reason_number(reason: Reason) -> u32 {
    match reason {
        Reason::Operator => 1,
        Reason::OrganizationDisabled => 2,
        Reason::ApiKeyDisabled => 3,
        Reason::BudgetSpent => 4,
    }
}

fn reason(number: u32) -> Option<Reason> {
    Reason::ALL.into_iter().find(|&reason| reason_number(reason) == number)
}
