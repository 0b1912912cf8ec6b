//! Reads everything that the tables hold, in one snapshot.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use lease::{Change, Timestamp, Used, WallTime};
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::commit::unescaped;
use crate::fleet::{JournalRow, LeaderId, LeadershipRow, MemberId, Rows};
use crate::journal::encoding::{BadRow, BorrowedAsRow, LeaseRow, RememberedRow, subject};
use crate::journal::{Restored, Stamp};
use crate::records::OperatorRecord;

/// Why the tables cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Database(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Row(#[from] BadRow),
    #[error("its rows contradict each other: {0}")]
    Contradiction(#[from] lease::Invalid),
}

/// Restores all rows, and returns the stamp of the last batch.
pub(crate) async fn load(
    client: &Client,
    schema: &str,
    restored: &mut Restored,
) -> Result<Stamp, LoadError> {
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let stamp = load_all(client, schema, restored).await?;
    client.batch_execute("COMMIT").await?;
    Ok(stamp)
}

pub(super) async fn load_all(
    client: &Client,
    schema: &str,
    restored: &mut Restored,
) -> Result<Stamp, LoadError> {
    let query = format!("SELECT store_time, next_serial FROM {schema}.journal");
    let row = client.query_typed_one(&query, &[]).await?;
    let stamp =
        Stamp { time: Timestamp::from_nanos(unsigned(&row, 0)?), next_serial: unsigned(&row, 1)? };
    each(client, &format!("SELECT * FROM {schema}.leases"), |row| {
        restored.ledger.restore(Change::Granted(Box::new(lease(row)?)))?;
        Ok(())
    })
    .await?;
    each(client, &format!("SELECT key, row FROM {schema}.remembered"), |row| {
        let (key, row): (Vec<u8>, Vec<u8>) = (row.try_get(0)?, row.try_get(1)?);
        let (until, change) = RememberedRow::read(&key, &row)?;
        if until > stamp.time {
            restored.ledger.restore(change)?;
        }
        Ok(())
    })
    .await?;
    each(client, &format!("SELECT * FROM {schema}.usage"), |row| {
        let bad = BadRow { table: "usage" };
        let window = |at| -> Result<u32, LoadError> {
            Ok(u32::try_from(row.try_get::<_, i64>(at)?).map_err(|_| bad)?)
        };
        let used =
            Used { day: (window(2)?, row.try_get(3)?), month: (window(4)?, row.try_get(5)?) };
        let (organization, metric) = (text(row, 0, bad)?.into(), text(row, 1, bad)?.into());
        restored.ledger.restore(Change::Used { organization, metric, used })?;
        Ok(())
    })
    .await?;
    load_operator_records(client, schema, restored).await?;
    Ok(stamp)
}

async fn load_operator_records(
    client: &Client,
    schema: &str,
    restored: &mut Restored,
) -> Result<(), LoadError> {
    let query = format!(
        "SELECT subject, id, service, value, extract(epoch FROM set_at)::int8, note \
         FROM {schema}.overrides"
    );
    each(client, &query, |row| {
        let bad = BadRow { table: "overrides" };
        let number = u8::try_from(row.try_get::<_, i32>(0)?).map_err(|_| bad)?;
        let service = Some(text(row, 2, bad)?).filter(|service| !service.is_empty());
        let key = OverrideKey {
            subject: subject(number).ok_or(bad)?,
            id: text(row, 1, bad)?.into(),
            service: service.map(Into::into),
        };
        let value = Some(Override {
            value: unsigned(row, 3)?,
            set_at: WallTime::from_unix(row.try_get(4)?),
            note: text(row, 5, bad)?.into(),
        });
        restored.records.apply(OperatorRecord::Override(OverrideChange { key, value }));
        Ok(())
    })
    .await?;
    let query = format!(
        "SELECT number, extract(epoch FROM at)::int8, sender, action, note, ended \
         FROM {schema}.audit ORDER BY number"
    );
    each(client, &query, |row| {
        let bad = BadRow { table: "audit" };
        restored.records.apply(OperatorRecord::Audit(AuditEntry {
            number: unsigned(row, 0)?,
            at: WallTime::from_unix(row.try_get(1)?),
            from: text(row, 2, bad)?.into(),
            action: text(row, 3, bad)?.into(),
            note: text(row, 4, bad)?.into(),
            ended: unsigned(row, 5)?,
        }));
        Ok(())
    })
    .await
}

/// Calls `read` with each row, as they arrive.
pub(super) async fn each(
    client: &Client,
    query: &str,
    mut read: impl FnMut(&Row) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let rows =
        client.query_typed_raw(query, std::iter::empty::<(&(dyn ToSql + Sync), _)>()).await?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await? {
        read(&row)?;
    }
    Ok(())
}

fn lease(row: &Row) -> Result<lease::Lease, LoadError> {
    let bad = BadRow { table: "leases" };
    let serial = unsigned(row, 0)?;
    let slot = u32::try_from(row.try_get::<_, i64>(1)?).map_err(|_| bad)?;
    let indexer = match row.try_get::<_, Option<String>>(4)? {
        Some(indexer) => Some(unescaped(indexer).ok_or(bad)?),
        None => None,
    };
    let lingers_until = row.try_get::<_, Option<i64>>(11)?.map(i64::cast_unsigned);
    let borrowed_as = match (row.try_get::<_, Option<Vec<u8>>>(12)?, row.try_get(13)?) {
        (None, None) => None,
        (Some(id), Some(fingerprint)) => {
            let id = u128::from_be_bytes(id.try_into().map_err(|_| bad)?);
            let (id_high, id_low) = ((id >> 64) as u64, id as u64);
            Some(BorrowedAsRow { id_high, id_low, fingerprint: i64::cast_unsigned(fingerprint) })
        }
        _ => return Err(bad.into()),
    };
    let lease = LeaseRow {
        slot,
        secret: row.try_get(2)?,
        worker: row.try_get(3)?,
        indexer,
        service: text(row, 5, bad)?,
        organization: text(row, 6, bad)?,
        api_key: text(row, 7, bad)?,
        trace: text(row, 8, bad)?,
        granted_at: unsigned(row, 9)?,
        ttl_nanos: unsigned(row, 10)?,
        borrowed_as,
    };
    Ok(lease.into_lease(serial, lingers_until)?)
}

fn text(row: &Row, at: usize, bad: BadRow) -> Result<String, LoadError> {
    Ok(unescaped(row.try_get(at)?).ok_or(bad)?)
}

pub(super) fn unsigned(row: &Row, at: usize) -> Result<u64, LoadError> {
    let number: i64 = row.try_get(at)?;
    Ok(u64::try_from(number).map_err(|_| BadRow { table: "journal" })?)
}

/// The columns of [`Rows`], for [`rows`].
pub(crate) const ROWS: &str = "f.epoch, f.leader, f.renewals, f.leader_ttl_ms, f.address, f.released, \
                               f.successor, j.leader, j.sequence, j.attempt";

/// Reads the two rows that say who leads.
pub(crate) fn rows(row: &Row) -> Result<Rows, LoadError> {
    let leadership = LeadershipRow {
        epoch: unsigned(row, 0)?,
        leader: leader(row, 1)?,
        renewals: unsigned(row, 2)?,
        leader_ttl: Duration::from_millis(unsigned(row, 3)?),
        address: row.try_get::<_, String>(4)?.into(),
        released: row.try_get(5)?,
        successor: match row.try_get::<_, Option<String>>(6)? {
            Some(id) => Some(MemberId(id_of(&id)?)),
            None => None,
        },
    };
    let journal = JournalRow {
        leader: leader(row, 7)?,
        sequence: unsigned(row, 8)?,
        attempt: unsigned(row, 9)?,
    };
    Ok(Rows { leadership, journal })
}

pub(crate) fn leader(row: &Row, at: usize) -> Result<LeaderId, LoadError> {
    Ok(LeaderId(id_of(&row.try_get::<_, String>(at)?)?))
}

/// Reads the id of a term or of a member.
pub(crate) fn id_of(text: &str) -> Result<u128, LoadError> {
    Ok(u128::from_str_radix(text, 16).map_err(|_| BadRow { table: "fleet" })?)
}
