//! The rows of a journal as keys and values, for an engine that keeps keys in order.
//!
//! Below the prefix of the store: `leases/SERIAL` and, for a lease that lingers, `leases/SERIALl` with its
//! end, `remembered/KEY`, `usage/ORGANIZATION…METRIC`, `overrides/…` and `audit/NUMBER`. Numbers in keys
//! have eight bytes, the highest first. 0xff, which is in no UTF-8 text, separates two texts.

use std::collections::BTreeMap;

use lease::{Change, Timestamp};
use policy::overrides::{OverrideChange, OverrideKey};
use prost::Message as _;

use super::encoding::{
    AuditRow, BadRow, LeaseRow, OverrideRow, RememberedRow, UsedRow, subject_number,
};
use super::engine::Unanswered;
use super::rows::Rows;
use super::{Restored, Stamp};
use crate::records::OperatorRecord;

const LEASES: &str = "leases/";
const REMEMBERED: &str = "remembered/";
const USAGE: &str = "usage/";
const OVERRIDES: &str = "overrides/";
const AUDIT: &str = "audit/";

/// The beginnings of all keys of rows, in the order in which they are read.
pub(crate) const TABLES: [&str; 5] = [LEASES, REMEMBERED, USAGE, OVERRIDES, AUDIT];

const SEPARATOR: u8 = 0xff;

/// A change of keys.
#[derive(Debug)]
pub(crate) enum KeyChange {
    /// Writes a value.
    Put(Vec<u8>, Vec<u8>),
    /// Removes the keys from the first to below the second.
    Remove(Vec<u8>, Vec<u8>),
}

impl KeyChange {
    /// Writes the value of one key, or removes the key.
    fn of(key: Vec<u8>, value: Option<Vec<u8>>) -> Self {
        match value {
            Some(value) => Self::Put(key, value),
            None => {
                let next = [&*key, &[0]].concat();
                Self::Remove(key, next)
            }
        }
    }

    /// Removes every key that begins with `prefix`.
    pub(crate) fn remove_all(prefix: Vec<u8>) -> Self {
        let end = end_of(&prefix);
        Self::Remove(prefix, end)
    }
}

/// The first key after those that begin with `prefix`, which ends with no 0xff.
pub(crate) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// A key that ends with a number.
pub(crate) fn numbered(prefix: &[u8], number: u64) -> Vec<u8> {
    [prefix, &number.to_be_bytes()].concat()
}

/// The changes of one batch. No key is both written and removed. `now` is its store time: facts that are
/// past by then are removed.
pub(crate) fn changes(prefix: &[u8], rows: &Rows, now: Timestamp) -> Vec<KeyChange> {
    let table = |name: &str| [prefix, name.as_bytes()].concat();
    let (leases, remembered, usage) = (table(LEASES), table(REMEMBERED), table(USAGE));
    let mut changes = Vec::with_capacity(rows.ended.len() + rows.granted.len() + 8);
    for serial in &rows.ended {
        // With the end of its lingering.
        let (from, to) = (numbered(&leases, *serial), numbered(&leases, serial + 1));
        changes.push(KeyChange::Remove(from, to));
    }
    for (serial, lease) in &rows.granted {
        changes.push(KeyChange::Put(numbered(&leases, *serial), lease.encode_to_vec()));
    }
    for (serial, until) in &rows.lingering {
        let key = [&*numbered(&leases, *serial), b"l"].concat();
        changes.push(KeyChange::Put(key, until.to_be_bytes().into()));
    }
    let past = RememberedRow::keys_up_to(now);
    changes.push(KeyChange::Remove(remembered.clone(), [&*remembered, &past].concat()));
    for (fact, row) in rows.remembered.iter().filter(|(fact, _)| **fact >= past) {
        let row = row.as_ref().map(RememberedRow::encode_to_vec);
        changes.push(KeyChange::of([&*remembered, fact].concat(), row));
    }
    for ((organization, metric), row) in &rows.used {
        let key = [&*usage, organization.as_bytes(), &[SEPARATOR], metric.as_bytes()].concat();
        changes.push(KeyChange::of(key, row.as_ref().map(UsedRow::encode_to_vec)));
    }
    // Of several records with one key the last counts.
    let mut records = BTreeMap::new();
    for record in &rows.operator_records {
        let (key, row) = match record {
            OperatorRecord::Override(OverrideChange { key, value }) => {
                let row = value.as_ref().map(|value| OverrideRow::from(value).encode_to_vec());
                (override_key(table(OVERRIDES), key), row)
            }
            OperatorRecord::Audit(entry) => {
                let row = AuditRow::from(entry).encode_to_vec();
                (numbered(&table(AUDIT), entry.number), Some(row))
            }
            OperatorRecord::AuditRemoved(number) => (numbered(&table(AUDIT), *number), None),
        };
        records.insert(key, row);
    }
    changes.extend(records.into_iter().map(|(key, row)| KeyChange::of(key, row)));
    changes
}

fn override_key(mut key: Vec<u8>, set: &OverrideKey) -> Vec<u8> {
    key.push(subject_number(set.subject));
    key.extend(set.id.as_bytes());
    if let Some(service) = &set.service {
        key.push(SEPARATOR);
        key.extend(service.as_bytes());
    }
    key
}

/// Two texts of a key, of which the second may be missing.
fn texts(key: &[u8]) -> Option<(&str, Option<&str>)> {
    let mut texts = key.splitn(2, |byte| *byte == SEPARATOR).map(std::str::from_utf8);
    let first = texts.next()?.ok()?;
    Some((first, texts.next().transpose().ok()?))
}

/// Restores rows from keys and values, which come in the order of the keys.
#[derive(Debug)]
pub(crate) struct Reading<'a> {
    restored: &'a mut Restored,
    stamp: Stamp,
    /// The last lease that was read. The end of its lingering may follow.
    lease: Option<(u64, Vec<u8>)>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(restored: &'a mut Restored, stamp: Stamp) -> Self {
        Self { restored, stamp, lease: None }
    }

    /// Restores a row. `key` comes after the name of the table.
    pub(crate) fn read(
        &mut self,
        table: &'static str,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), Unanswered> {
        let bad = BadRow { table };
        match table {
            LEASES => {
                let (serial, rest) = key.split_first_chunk().ok_or(bad)?;
                let serial = u64::from_be_bytes(*serial);
                if rest.is_empty() {
                    self.restore_lease(None)?;
                    self.lease = Some((serial, value.into()));
                    return Ok(());
                }
                let until = value.try_into().map(u64::from_be_bytes).map_err(|_| bad)?;
                self.lease = self.lease.take().filter(|(lease, _)| *lease == serial);
                return self.restore_lease(Some(until));
            }
            REMEMBERED => {
                let (until, change) = RememberedRow::read(key, value)?;
                if until > self.stamp.time {
                    self.restored.ledger.restore(change)?;
                }
            }
            USAGE => {
                let (organization, metric) = texts(key).ok_or(bad)?;
                let (organization, metric) = (organization.into(), metric.ok_or(bad)?.into());
                let used = UsedRow::read(value)?;
                self.restored.ledger.restore(Change::Used { organization, metric, used })?;
            }
            OVERRIDES => {
                let (subject, key) = key.split_first().ok_or(bad)?;
                let (id, service) = texts(key).ok_or(bad)?;
                let set = OverrideRow::read((*subject, id, service), value)?;
                self.restored.records.apply(OperatorRecord::Override(set));
            }
            _ => {
                let number = key.try_into().map(u64::from_be_bytes).map_err(|_| bad)?;
                let entry = AuditRow::read(number, value)?;
                self.restored.records.apply(OperatorRecord::Audit(entry));
            }
        }
        Ok(())
    }

    /// Ends the reading: all keys were read.
    pub(crate) fn finish(mut self) -> Result<Stamp, Unanswered> {
        self.restore_lease(None)?;
        Ok(self.stamp)
    }

    fn restore_lease(&mut self, lingers_until: Option<u64>) -> Result<(), Unanswered> {
        let Some((serial, row)) = self.lease.take() else { return Ok(()) };
        let lease = LeaseRow::read(serial, &row, lingers_until)?;
        Ok(self.restored.ledger.restore(Change::Granted(Box::new(lease)))?)
    }
}
