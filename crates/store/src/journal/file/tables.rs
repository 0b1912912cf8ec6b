//! The tables of a store file, and how the rows of a batch are written to them.

use std::ops::Bound;

use lease::Timestamp;
use policy::overrides::OverrideChange;
use prost::Message;
use redb::{
    CursorError, Database, Durability, Key, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, WriteTransaction,
};

use crate::journal::Stamp;
use crate::journal::encoding::{AuditRow, OverrideRow, RememberedRow, subject_number};
use crate::journal::rows::Rows;
use crate::records::OperatorRecord;

/// The most expired facts that one commit removes: enough to keep up, bounded per commit.
const FORGET_AT_ONCE: usize = 1_000;

/// `format`: the format and 0. `stamp`: store time and the serial number of the next grant. `batch`:
/// the number of the batch and 0.
pub(crate) const META: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("meta");

/// Leases by serial number.
pub(crate) const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");

/// When lingering leases end, by serial number.
pub(crate) const LINGERING: TableDefinition<'_, u64, u64> = TableDefinition::new("lingering");

/// Facts that are remembered for a time, in the order in which they may be removed.
pub(crate) const REMEMBERED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("remembered");

/// Usage counts by organization and metric.
pub(crate) const USAGE: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("usage");

/// Overrides by subject, id and service entry. Since format 2.
pub(crate) const OVERRIDES: TableDefinition<'_, (u8, &str, Option<&str>), &[u8]> =
    TableDefinition::new("overrides");

/// Audit entries by number. Since format 2.
pub(crate) const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");

/// Creates all missing tables, and writes the format of the database.
pub(crate) fn create_tables(database: &Database, format: u64) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.open_table(OVERRIDES)?;
    transaction.open_table(AUDIT)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(LINGERING)?;
    transaction.open_table(REMEMBERED)?;
    transaction.open_table(USAGE)?;
    transaction.open_table(META)?.insert("format", (format, 0))?;
    Ok(transaction.commit()?)
}

/// Writes the rows, `stamp` and the number of the batch in one transaction, flushed when it
/// returns.
pub(crate) fn write(
    rows: &Rows,
    database: &Database,
    stamp: Stamp,
    batch: u64,
) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    write_leases(rows, &transaction)?;
    write_lingering(rows, &transaction)?;
    write_remembered(rows, &transaction, stamp.time)?;
    write_used(rows, &transaction)?;
    write_operator_records(rows, &transaction)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert("stamp", (stamp.time.as_nanos(), stamp.next_serial))?;
        meta.insert("batch", (batch, 0))?;
    }
    Ok(transaction.commit()?)
}

fn write_leases(rows: &Rows, transaction: &WriteTransaction) -> Result<(), redb::Error> {
    if rows.ended.is_empty() && rows.granted.is_empty() {
        return Ok(());
    }
    let mut leases = transaction.open_table(LEASES)?;
    for serial in &rows.ended {
        leases.remove(serial)?;
    }
    insert_rising(&mut leases, rows.granted.iter().map(|(serial, lease)| (*serial, lease)))
}

/// Up to so many rows are inserted one by one: there a cursor costs more than it saves.
const FEW_ROWS: usize = 20;

/// Inserts rows whose keys rise.
fn insert_rising<'r, K: Key + 'static, R: Message + 'r>(
    table: &mut Table<'_, K, &'static [u8]>,
    rows: impl Iterator<Item = (K::SelfType<'r>, &'r R)> + Clone,
) -> Result<(), redb::Error> {
    let are_many = rows.clone().nth(FEW_ROWS).is_some();
    if are_many && insert_behind(table, rows.clone())? {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(512);
    for (key, row) in rows {
        bytes.clear();
        row.encode_raw(&mut bytes);
        table.insert(key, bytes.as_slice())?;
    }
    Ok(())
}

/// Inserts rows behind all others, where most belong, as serial numbers and times rise. A cursor inserts
/// them one after another: for 180 rows in half the time of a search for each place. Returns `false` at a
/// row that belongs elsewhere.
fn insert_behind<'r, K: Key + 'static, R: Message + 'r>(
    table: &mut Table<'_, K, &'static [u8]>,
    rows: impl Iterator<Item = (K::SelfType<'r>, &'r R)>,
) -> Result<bool, redb::Error> {
    let mut bytes = Vec::with_capacity(512);
    let mut end = table.upper_bound_mut(Bound::<K::SelfType<'r>>::Unbounded)?;
    for (key, row) in rows {
        bytes.clear();
        row.encode_raw(&mut bytes);
        match end.insert_before(key, bytes.as_slice()) {
            Err(CursorError::UnorderedKey) => {
                end.close()?;
                return Ok(false);
            }
            inserted => inserted?,
        }
    }
    end.close()?;
    Ok(true)
}

fn write_lingering(rows: &Rows, transaction: &WriteTransaction) -> Result<(), redb::Error> {
    if rows.ended.is_empty() && rows.lingering.is_empty() {
        return Ok(());
    }
    let mut lingering = transaction.open_table(LINGERING)?;
    if !lingering.is_empty()? {
        for serial in &rows.ended {
            lingering.remove(serial)?;
        }
    }
    for (serial, until) in &rows.lingering {
        lingering.insert(serial, until)?;
    }
    Ok(())
}

fn write_remembered(
    rows: &Rows,
    transaction: &WriteTransaction,
    now: Timestamp,
) -> Result<(), redb::Error> {
    let mut remembered = transaction.open_table(REMEMBERED)?;
    for (key, _) in rows.remembered.iter().filter(|(_, fact)| fact.is_none()) {
        remembered.remove(key.as_slice())?;
    }
    let facts = rows.remembered.iter().filter_map(|(key, fact)| Some((&**key, fact.as_ref()?)));
    insert_rising(&mut remembered, facts)?;
    let past = RememberedRow::keys_up_to(now);
    for _ in 0..FORGET_AT_ONCE {
        if remembered.first()?.is_none_or(|(key, _)| key.value() > past.as_slice()) {
            break;
        }
        remembered.pop_first()?;
    }
    Ok(())
}

fn write_used(rows: &Rows, transaction: &WriteTransaction) -> Result<(), redb::Error> {
    if rows.used.is_empty() {
        return Ok(());
    }
    let mut usage = transaction.open_table(USAGE)?;
    let mut row = Vec::with_capacity(64);
    for ((organization, metric), used) in &rows.used {
        let key = (&**organization, &**metric);
        if let Some(used) = used {
            row.clear();
            used.encode_raw(&mut row);
            usage.insert(key, row.as_slice())?;
        } else {
            usage.remove(key)?;
        }
    }
    Ok(())
}

fn write_operator_records(rows: &Rows, transaction: &WriteTransaction) -> Result<(), redb::Error> {
    if rows.operator_records.is_empty() {
        return Ok(());
    }
    let mut overrides = transaction.open_table(OVERRIDES)?;
    let mut audit = transaction.open_table(AUDIT)?;
    for record in &rows.operator_records {
        match record {
            OperatorRecord::Override(OverrideChange { key, value }) => {
                let key = (subject_number(key.subject), &*key.id, key.service.as_deref());
                match value {
                    Some(value) => {
                        let row = OverrideRow::from(value).encode_to_vec();
                        overrides.insert(key, row.as_slice())?;
                    }
                    None => drop(overrides.remove(key)?),
                }
            }
            OperatorRecord::Audit(entry) => {
                let row = AuditRow::from(entry).encode_to_vec();
                audit.insert(entry.number, row.as_slice())?;
            }
            OperatorRecord::AuditRemoved(number) => drop(audit.remove(number)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;
    use crate::journal::encoding::LeaseRow;

    #[test]
    fn rows_behind_and_between_others_are_all_kept() {
        let database = redb::Builder::new().create_with_backend(InMemoryBackend::new()).unwrap();
        create_tables(&database, 1).unwrap();
        for slots in [[5, 9], [10, 12], [3, 13], [9, 11]] {
            let granted = slots
                .map(|slot| (u64::from(slot), LeaseRow { slot: slot * 2, ..LeaseRow::default() }));
            let rows = Rows { granted: granted.into(), ..Rows::default() };
            write(&rows, &database, Stamp::default(), 1).unwrap();
        }
        let transaction = database.begin_write().unwrap();
        let leases = transaction.open_table(LEASES).unwrap();
        let kept = leases.iter().unwrap().map(|row| {
            let (serial, row) = row.unwrap();
            assert_eq!(u64::from(LeaseRow::decode(row.value()).unwrap().slot), 2 * serial.value());
            serial.value()
        });
        assert_eq!(kept.collect::<Vec<_>>(), [3, 5, 9, 10, 11, 12, 13]);
    }
}
