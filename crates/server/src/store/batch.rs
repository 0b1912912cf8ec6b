//! From the changes of one batch to the tables of the journal.

use std::collections::BTreeMap;

use lease::{Change, Timestamp};
use policy::overrides::{AuditEntry, MAX_AUDIT, OverrideChange};
use prost::Message as _;
use redb::{
    Database, Durability, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};

use super::journal::Stamp;
use super::rows::{AuditRow, LeaseRow, OverrideRow, RememberedRow, UsedRow, subject_number};

/// Facts past their time that one commit forgets: enough to keep up, bounded per commit.
const FORGET_AT_ONCE: usize = 1_000;

/// `format`: the format and 0. `stamp`: store time and the serial number of the next grant. `batch`:
/// the number of the batch and 0.
pub(super) const META: TableDefinition<'_, &str, (u64, u64)> = TableDefinition::new("meta");

/// Leases by serial number.
pub(super) const LEASES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leases");

/// When lingering leases end, by serial number.
pub(super) const LINGERING: TableDefinition<'_, u64, u64> = TableDefinition::new("lingering");

/// Facts with a time limit, in the order they may be forgotten.
pub(super) const REMEMBERED: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("remembered");

/// Usage counts by organization and metric.
pub(super) const USAGE: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("usage");

/// Overrides by subject, id and service entry. Since format 2.
pub(super) const OVERRIDES: TableDefinition<'_, (u8, &str, Option<&str>), &[u8]> =
    TableDefinition::new("overrides");

/// What operators did, by number. Since format 2.
pub(super) const AUDIT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("audit");

/// What an operator did, as it goes into a batch.
#[derive(Clone, Debug)]
pub(super) enum Operated {
    /// An override was set or cleared.
    Override(OverrideChange),
    /// An entry of the audit list, new or amended.
    Audit(AuditEntry),
}

/// Makes every table that is not there, and says that the database has this format.
pub(super) fn found(database: &Database, format: u64) -> Result<(), redb::Error> {
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

/// The rows one batch comes to. A lease granted and gone within the batch leaves no trace.
#[derive(Default)]
pub(super) struct Rows {
    granted: BTreeMap<u64, LeaseRow>,
    lingering: BTreeMap<u64, u64>,
    ended: Vec<u64>,
    /// None for what is kept no longer.
    remembered: BTreeMap<Vec<u8>, Option<RememberedRow>>,
    /// None for what is kept no longer.
    used: BTreeMap<(Box<str>, Box<str>), Option<UsedRow>>,
    operated: Vec<Operated>,
}

impl Rows {
    pub(super) fn collect(changes: Vec<Change>, operated: Vec<Operated>) -> Self {
        let mut rows = Self { operated, ..Self::default() };
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
            Change::TraceEnded(end) => {
                let (key, row) = RememberedRow::trace_ended(*end);
                self.remembered.insert(key, Some(row));
            }
            Change::TraceGone(end) => {
                let (key, _) = RememberedRow::trace_ended(*end);
                self.remembered.insert(key, None);
            }
            Change::Revoked(revocation) => {
                let (key, row) = RememberedRow::revoked(*revocation);
                self.remembered.insert(key, Some(row));
            }
            Change::Used { organization, metric, used } => {
                self.used.insert((organization, metric), Some(used.into()));
            }
            Change::Unused { organization, metric } => {
                self.used.insert((organization, metric), None);
            }
            Change::Reported { indexer, key, until, fingerprint, applied } => {
                let (key, row) = RememberedRow::reported(indexer, key, until, fingerprint, applied);
                self.remembered.insert(key, Some(row));
            }
            Change::BorrowEnded { indexer, id, fingerprint, until } => {
                let (key, row) = RememberedRow::borrow_ended(indexer, id, fingerprint, until);
                self.remembered.insert(key, Some(row));
            }
        }
    }

    /// Writes the rows, `stamp` and the number of the batch in one transaction, flushed when it
    /// returns.
    pub(super) fn write(
        &self,
        database: &Database,
        stamp: Stamp,
        batch: u64,
    ) -> Result<(), redb::Error> {
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        self.write_leases(&transaction)?;
        self.write_lingering(&transaction)?;
        self.write_remembered(&transaction, stamp.time)?;
        self.write_used(&transaction)?;
        self.write_operated(&transaction)?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("stamp", (stamp.time.as_nanos(), stamp.next_serial))?;
            meta.insert("batch", (batch, 0))?;
        }
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
            let Some(fact) = fact else {
                remembered.remove(key.as_slice())?;
                continue;
            };
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

    fn write_operated(&self, transaction: &WriteTransaction) -> Result<(), redb::Error> {
        if self.operated.is_empty() {
            return Ok(());
        }
        let mut overrides = transaction.open_table(OVERRIDES)?;
        let mut audit = transaction.open_table(AUDIT)?;
        for operated in &self.operated {
            match operated {
                Operated::Override(OverrideChange { key, value }) => {
                    let key = (subject_number(key.subject), &*key.id, key.service.as_deref());
                    match value {
                        Some(value) => {
                            let row = OverrideRow::from(value).encode_to_vec();
                            overrides.insert(key, row.as_slice())?;
                        }
                        None => drop(overrides.remove(key)?),
                    }
                }
                Operated::Audit(entry) => {
                    let row = AuditRow::from(entry).encode_to_vec();
                    audit.insert(entry.number, row.as_slice())?;
                    if audit.len()? > MAX_AUDIT as u64 {
                        audit.pop_first()?;
                    }
                }
            }
        }
        Ok(())
    }
}
