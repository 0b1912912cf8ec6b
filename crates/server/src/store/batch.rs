//! From the changes of one batch to the tables of the journal.

use std::collections::BTreeMap;

use lease::{Change, Timestamp};
use prost::Message as _;
use redb::{
    Database, Durability, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use super::journal::Stamp;
use super::rows::{LeaseRow, RememberedRow, UsedRow};

/// Facts past their time that one commit forgets: enough to keep up, bounded per commit.
const FORGET_AT_ONCE: usize = 1_000;

/// `format`: the format and 0. `stamp`: store time and the serial number of the next grant.
pub(super) const META: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("meta");

/// Leases by serial number.
pub(super) const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");

/// When lingering leases end, by serial number.
pub(super) const LINGERING: TableDefinition<'_, u64, u64> = TableDefinition::new("lingering");

/// Facts with a time limit, in the order they may be forgotten.
pub(super) const REMEMBERED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("remembered");

/// Usage counts by organization and metric.
pub(super) const USAGE: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("usage");

/// Makes every table of an empty database.
pub(super) fn found(database: &Database, format: u64) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.open_table(LEASES)?;
    transaction.open_table(LINGERING)?;
    transaction.open_table(REMEMBERED)?;
    transaction.open_table(USAGE)?;
    transaction.open_table(META)?.insert("format", (format, 0))?;
    Ok(transaction.commit()?)
}

/// The rows one batch comes to. A lease granted and gone within the batch leaves no trace.
#[derive(Default)]
pub(super) struct Rows {
    granted: BTreeMap<u64, LeaseRow>,
    lingering: BTreeMap<u64, u64>,
    ended: Vec<u64>,
    remembered: BTreeMap<Vec<u8>, RememberedRow>,
    used: BTreeMap<(Box<str>, Box<str>), UsedRow>,
}

impl Rows {
    pub(super) fn collect(changes: impl Iterator<Item = Change>) -> Self {
        let mut rows = Self::default();
        for change in changes {
            rows.add(change);
        }
        // In the order of the tables, so that neighbours are written together.
        rows.ended.sort_unstable();
        rows
    }

    fn add(&mut self, change: Change) {
        match change {
            Change::Granted(lease) => {
                self.granted.insert(lease.id.serial(), LeaseRow::from(*lease));
            }
            Change::Lingers { id, until } => {
                self.lingering.insert(id.serial(), until.as_nanos());
            }
            Change::Ended { id, .. } => {
                self.lingering.remove(&id.serial());
                if self.granted.remove(&id.serial()).is_none() {
                    self.ended.push(id.serial());
                }
            }
            Change::Revoked { id, indexer, reason, until } => {
                let (key, row) = RememberedRow::revoked(id, indexer, reason, until);
                self.remembered.insert(key, row);
            }
            Change::Used { organization, metric, used } => {
                self.used.insert((organization, metric), used.into());
            }
            Change::Reported { indexer, key, until } => {
                let (key, row) = RememberedRow::reported(indexer, key, until);
                self.remembered.insert(key, row);
            }
        }
    }

    /// Writes the rows and `stamp` in one transaction, flushed when it returns.
    pub(super) fn write(&self, database: &Database, stamp: Stamp) -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        self.write_leases(&transaction)?;
        self.write_lingering(&transaction)?;
        self.write_remembered(&transaction, stamp.time)?;
        self.write_used(&transaction)?;
        transaction
            .open_table(META)?
            .insert("stamp", (stamp.time.as_nanos(), stamp.next_serial))?;
        Ok(transaction.commit()?)
    }

    fn write_leases(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        if self.ended.is_empty() && self.granted.is_empty() {
            return Ok(());
        }
        let mut leases = transaction.open_table(LEASES)?;
        for serial in &self.ended {
            leases.remove(serial)?;
        }
        let mut row = Vec::with_capacity(512);
        for (serial, lease) in &self.granted {
            row.clear();
            lease.encode_raw(&mut row);
            leases.insert(serial, row.as_slice())?;
        }
        Ok(())
    }

    fn write_lingering(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        if self.ended.is_empty() && self.lingering.is_empty() {
            return Ok(());
        }
        let mut lingering = transaction.open_table(LINGERING)?;
        if !lingering.is_empty()? {
            for serial in &self.ended {
                lingering.remove(serial)?;
            }
        }
        for (serial, until) in &self.lingering {
            lingering.insert(serial, until)?;
        }
        Ok(())
    }

    fn write_remembered(
        &self,
        transaction: &WriteTransaction,
        now: Timestamp,
    ) -> Result<(), redb::Error> {
        let mut remembered = transaction.open_table(REMEMBERED)?;
        let mut row = Vec::with_capacity(512);
        for (key, fact) in &self.remembered {
            row.clear();
            fact.encode_raw(&mut row);
            remembered.insert(key.as_slice(), row.as_slice())?;
        }
        let past = RememberedRow::keys_up_to(now);
        for _ in 0..FORGET_AT_ONCE {
            if remembered.first()?.is_none_or(|(key, _)| key.value() > past.as_slice()) {
                break;
            }
            remembered.pop_first()?;
        }
        Ok(())
    }

    fn write_used(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        if self.used.is_empty() {
            return Ok(());
        }
        let mut usage = transaction.open_table(USAGE)?;
        let mut row = Vec::with_capacity(64);
        for ((organization, metric), used) in &self.used {
            row.clear();
            used.encode_raw(&mut row);
            usage.insert((&**organization, &**metric), row.as_slice())?;
        }
        Ok(())
    }
}
