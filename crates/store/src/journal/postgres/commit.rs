//! One batch as one statement: nothing of it happens unless the journal row is the expected one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use lease::Timestamp;
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey};
use prost::Message as _;
use tokio_postgres::types::{ToSql, Type};

use crate::fleet::JournalRow;
use crate::journal::Stamp;
use crate::journal::encoding::{BorrowedAsRow, RememberedRow, subject_number};
use crate::journal::rows::Rows;
use crate::records::OperatorRecord;

/// The most expired facts that one commit removes: enough to keep up, bounded per commit.
const FORGET_AT_ONCE: i64 = 1_000;

/// A statement and its parameters.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    parameters: Vec<(Box<dyn ToSql + Send + Sync>, Type)>,
}

impl Statement {
    pub(super) fn new() -> Self {
        Self { sql: String::with_capacity(2_048), parameters: Vec::with_capacity(40) }
    }

    /// The parameters, each with its type.
    pub(crate) fn parameters(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        let parameters = self.parameters.iter();
        parameters.map(|(value, kind)| (&**value as &(dyn ToSql + Sync), kind.clone())).collect()
    }

    /// Adds a parameter and returns its place.
    pub(super) fn add(&mut self, value: impl ToSql + Send + Sync + 'static, kind: Type) -> usize {
        self.parameters.push((Box::new(value), kind));
        self.parameters.len()
    }

    /// Adds arrays of which `unnest` makes rows. Returns the call.
    fn unnest(&mut self, columns: Vec<(Box<dyn ToSql + Send + Sync>, Type)>) -> String {
        let mut call = "unnest(".to_owned();
        for (place, column) in columns.into_iter().enumerate() {
            self.parameters.push(column);
            let separator = if place == 0 { "" } else { ", " };
            let _ = write!(call, "{separator}${}", self.parameters.len());
        }
        call + ")"
    }

    fn part(&mut self, name: &str, part: &str) {
        let _ = write!(self.sql, ",\n{name} AS ({part})");
    }
}

/// A column of an array parameter.
fn column<T: ToSql + Send + Sync + 'static>(
    values: Vec<T>,
    kind: Type,
) -> (Box<dyn ToSql + Send + Sync>, Type) {
    (Box::new(values), kind)
}

/// The statement that commits one batch. It returns one row with the number of journal rows it changed:
/// 1, or 0 when the journal row was another one and nothing happened.
pub(crate) fn statement(
    schema: &str,
    rows: &Rows,
    stamp: Stamp,
    seen: JournalRow,
    new: JournalRow,
) -> Statement {
    let mut statement = Statement::new();
    let sequence = statement.add(signed(new.sequence), Type::INT8);
    let time = statement.add(signed(stamp.time.as_nanos()), Type::INT8);
    let serial = statement.add(signed(stamp.next_serial), Type::INT8);
    let leader = statement.add(seen.leader.to_string(), Type::TEXT);
    let before = statement.add(signed(seen.sequence), Type::INT8);
    let attempt = statement.add(signed(seen.attempt), Type::INT8);
    let _ = write!(
        statement.sql,
        "WITH fence AS (UPDATE {schema}.journal \
         SET sequence = ${sequence}, store_time = ${time}, next_serial = ${serial} \
         WHERE leader = ${leader} AND sequence = ${before} AND attempt = ${attempt} \
         RETURNING sequence)"
    );
    add_leases(&mut statement, schema, rows);
    add_remembered(&mut statement, schema, rows, stamp.time);
    add_usage(&mut statement, schema, rows);
    add_operator_records(&mut statement, schema, rows);
    statement.sql.push_str("\nSELECT count(*) FROM fence");
    statement
}

fn add_leases(statement: &mut Statement, schema: &str, rows: &Rows) {
    if !rows.ended.is_empty() {
        let serials: Vec<i64> = rows.ended.iter().copied().map(signed).collect();
        let serials = statement.add(serials, Type::INT8_ARRAY);
        let part =
            format!("DELETE FROM {schema}.leases USING fence WHERE serial = ANY(${serials})");
        statement.part("ended", &part);
    }
    if !rows.granted.is_empty() {
        let (serials, leases): (Vec<i64>, Vec<_>) =
            rows.granted.iter().map(|(serial, lease)| (signed(*serial), lease)).unzip();
        let texts = |text: fn(&crate::journal::encoding::LeaseRow) -> &str| {
            let texts: Vec<String> =
                leases.iter().map(|lease| escaped(text(lease)).into()).collect();
            column(texts, Type::TEXT_ARRAY)
        };
        let indexers: Vec<Option<String>> = leases
            .iter()
            .map(|lease| lease.indexer.as_deref().map(|indexer| escaped(indexer).into()))
            .collect();
        let lingers: Vec<Option<i64>> = rows
            .granted
            .keys()
            .map(|serial| rows.lingering.get(serial).copied().map(signed))
            .collect();
        let (borrow_ids, fingerprints): (Vec<_>, Vec<_>) = leases
            .iter()
            .map(|lease| match &lease.borrowed_as {
                Some(BorrowedAsRow { id_high, id_low, fingerprint }) => {
                    let id = [id_high.to_be_bytes(), id_low.to_be_bytes()].concat();
                    (Some(id), Some(fingerprint.cast_signed()))
                }
                None => (None, None),
            })
            .unzip();
        let columns = vec![
            column(serials, Type::INT8_ARRAY),
            column(leases.iter().map(|lease| i64::from(lease.slot)).collect(), Type::INT8_ARRAY),
            column(leases.iter().map(|lease| lease.secret.clone()).collect(), Type::BYTEA_ARRAY),
            column(leases.iter().map(|lease| lease.worker).collect(), Type::BOOL_ARRAY),
            column(indexers, Type::TEXT_ARRAY),
            texts(|lease| &lease.service),
            texts(|lease| &lease.organization),
            texts(|lease| &lease.api_key),
            texts(|lease| &lease.trace),
            column(leases.iter().map(|lease| signed(lease.granted_at)).collect(), Type::INT8_ARRAY),
            column(leases.iter().map(|lease| signed(lease.ttl_nanos)).collect(), Type::INT8_ARRAY),
            column(lingers, Type::INT8_ARRAY),
            column(borrow_ids, Type::BYTEA_ARRAY),
            column(fingerprints, Type::INT8_ARRAY),
        ];
        let unnest = statement.unnest(columns);
        let part = format!("INSERT INTO {schema}.leases SELECT u.* FROM fence, {unnest} u");
        statement.part("granted", &part);
    }
    let lingering: Vec<_> =
        rows.lingering.iter().filter(|(serial, _)| !rows.granted.contains_key(serial)).collect();
    if !lingering.is_empty() {
        let unnest = statement.unnest(vec![
            column(
                lingering.iter().map(|(serial, _)| signed(**serial)).collect(),
                Type::INT8_ARRAY,
            ),
            column(lingering.iter().map(|(_, until)| signed(**until)).collect(), Type::INT8_ARRAY),
        ]);
        let part = format!(
            "UPDATE {schema}.leases l SET lingers_until = u.until \
             FROM fence, {unnest} u (serial, until) WHERE l.serial = u.serial"
        );
        statement.part("lingering", &part);
    }
}

fn add_remembered(statement: &mut Statement, schema: &str, rows: &Rows, now: Timestamp) {
    let (mut kept, mut gone) = (Vec::new(), Vec::new());
    for (key, row) in &rows.remembered {
        match row {
            Some(row) => kept.push((key.clone(), row)),
            None => gone.push(key.clone()),
        }
    }
    if !kept.is_empty() {
        let described: Vec<_> = kept.iter().map(|(_, row)| row.describe()).collect();
        let text = |text: &str| -> String { escaped(text).into() };
        let unnest = statement.unnest(vec![
            column(kept.iter().map(|(key, _)| key.clone()).collect(), Type::BYTEA_ARRAY),
            column(described.iter().map(|(fact, ..)| *fact).collect(), Type::TEXT_ARRAY),
            column(
                described.iter().map(|(_, indexer, _)| indexer.map(text)).collect(),
                Type::TEXT_ARRAY,
            ),
            column(described.iter().map(|(.., subject)| text(subject)).collect(), Type::TEXT_ARRAY),
            column(kept.iter().map(|(_, row)| row.encode_to_vec()).collect(), Type::BYTEA_ARRAY),
        ]);
        let part = format!(
            "INSERT INTO {schema}.remembered SELECT u.* FROM fence, {unnest} u \
             ON CONFLICT (key) DO UPDATE SET fact = excluded.fact, indexer = excluded.indexer, \
             subject = excluded.subject, row = excluded.row"
        );
        statement.part("remembered", &part);
    }
    if !gone.is_empty() {
        let keys = statement.add(gone, Type::BYTEA_ARRAY);
        let part = format!("DELETE FROM {schema}.remembered USING fence WHERE key = ANY(${keys})");
        statement.part("not_remembered", &part);
    }
    let past = statement.add(RememberedRow::keys_up_to(now), Type::BYTEA);
    let part = format!(
        "DELETE FROM {schema}.remembered USING fence WHERE key IN \
         (SELECT key FROM {schema}.remembered WHERE key <= ${past} ORDER BY key \
         LIMIT {FORGET_AT_ONCE})"
    );
    statement.part("forgotten", &part);
}

fn add_usage(statement: &mut Statement, schema: &str, rows: &Rows) {
    let text = |text: &str| -> String { escaped(text).into() };
    let (mut used, mut gone) = (Vec::new(), Vec::new());
    for ((organization, metric), row) in &rows.used {
        match row {
            Some(row) => used.push((text(organization), text(metric), *row)),
            None => gone.push((text(organization), text(metric))),
        }
    }
    if !used.is_empty() {
        let unnest = statement.unnest(vec![
            column(used.iter().map(|(name, _, _)| name.clone()).collect(), Type::TEXT_ARRAY),
            column(used.iter().map(|(_, name, _)| name.clone()).collect(), Type::TEXT_ARRAY),
            column(used.iter().map(|(_, _, row)| i64::from(row.day)).collect(), Type::INT8_ARRAY),
            column(used.iter().map(|(_, _, row)| row.in_day).collect(), Type::FLOAT8_ARRAY),
            column(used.iter().map(|(_, _, row)| i64::from(row.month)).collect(), Type::INT8_ARRAY),
            column(used.iter().map(|(_, _, row)| row.in_month).collect(), Type::FLOAT8_ARRAY),
        ]);
        let part = format!(
            "INSERT INTO {schema}.usage SELECT u.* FROM fence, {unnest} u \
             ON CONFLICT (organization, metric) DO UPDATE SET day = excluded.day, \
             in_day = excluded.in_day, month = excluded.month, in_month = excluded.in_month"
        );
        statement.part("used", &part);
    }
    if !gone.is_empty() {
        let (organizations, metrics): (Vec<_>, Vec<_>) = gone.into_iter().unzip();
        let unnest = statement.unnest(vec![
            column(organizations, Type::TEXT_ARRAY),
            column(metrics, Type::TEXT_ARRAY),
        ]);
        let part = format!(
            "DELETE FROM {schema}.usage USING fence, {unnest} u (organization, metric) \
             WHERE usage.organization = u.organization AND usage.metric = u.metric"
        );
        statement.part("unused", &part);
    }
}

fn add_operator_records(statement: &mut Statement, schema: &str, rows: &Rows) {
    // Of several records with one key the last counts.
    let mut overrides = BTreeMap::<&OverrideKey, Option<&Override>>::new();
    let mut audit = BTreeMap::<u64, Option<&AuditEntry>>::new();
    for record in &rows.operator_records {
        match record {
            OperatorRecord::Override(OverrideChange { key, value }) => {
                overrides.insert(key, value.as_ref());
            }
            OperatorRecord::Audit(entry) => {
                audit.insert(entry.number, Some(entry));
            }
            OperatorRecord::AuditRemoved(number) => drop(audit.insert(*number, None)),
        }
    }
    add_overrides(statement, schema, &overrides);
    if audit.is_empty() {
        return;
    }
    let removed: Vec<i64> = audit
        .iter()
        .filter(|(_, entry)| entry.is_none())
        .map(|(number, _)| signed(*number))
        .collect();
    if !removed.is_empty() {
        let removed = statement.add(removed, Type::INT8_ARRAY);
        let part = format!("DELETE FROM {schema}.audit USING fence WHERE number = ANY(${removed})");
        statement.part("old_audit", &part);
    }
    let entries: Vec<_> = audit.into_values().flatten().collect();
    let texts = |text: fn(&AuditEntry) -> &str| {
        let texts: Vec<String> = entries.iter().map(|entry| escaped(text(entry)).into()).collect();
        column(texts, Type::TEXT_ARRAY)
    };
    let unnest = statement.unnest(vec![
        column(entries.iter().map(|entry| signed(entry.number)).collect(), Type::INT8_ARRAY),
        column(entries.iter().map(|entry| entry.at.as_unix()).collect(), Type::INT8_ARRAY),
        texts(|entry| &entry.from),
        texts(|entry| &entry.action),
        texts(|entry| &entry.note),
        column(entries.iter().map(|entry| signed(entry.ended)).collect(), Type::INT8_ARRAY),
    ]);
    let part = format!(
        "INSERT INTO {schema}.audit \
         SELECT u.number, to_timestamp(u.at), u.sender, u.action, u.note, u.ended \
         FROM fence, {unnest} u (number, at, sender, action, note, ended) \
         ON CONFLICT (number) DO UPDATE SET ended = excluded.ended"
    );
    statement.part("audited", &part);
}

fn add_overrides(
    statement: &mut Statement,
    schema: &str,
    overrides: &BTreeMap<&OverrideKey, Option<&Override>>,
) {
    let key_columns = |keys: &[&OverrideKey]| {
        let service =
            |key: &OverrideKey| escaped(key.service.as_deref().unwrap_or_default()).into();
        vec![
            column(
                keys.iter().map(|key| i32::from(subject_number(key.subject))).collect(),
                Type::INT4_ARRAY,
            ),
            column(
                keys.iter().map(|key| escaped(&key.id).into()).collect::<Vec<String>>(),
                Type::TEXT_ARRAY,
            ),
            column(keys.iter().map(|key| service(key)).collect::<Vec<String>>(), Type::TEXT_ARRAY),
        ]
    };
    let (set, values): (Vec<&OverrideKey>, Vec<&Override>) =
        overrides.iter().filter_map(|(key, value)| Some((*key, (*value)?))).unzip();
    if !set.is_empty() {
        let mut columns = key_columns(&set);
        columns.extend([
            column(values.iter().map(|value| signed(value.value)).collect(), Type::INT8_ARRAY),
            column(values.iter().map(|value| value.set_at.as_unix()).collect(), Type::INT8_ARRAY),
            column(
                values.iter().map(|value| escaped(&value.note).into()).collect::<Vec<String>>(),
                Type::TEXT_ARRAY,
            ),
        ]);
        let unnest = statement.unnest(columns);
        let part = format!(
            "INSERT INTO {schema}.overrides \
             SELECT u.subject, u.id, u.service, u.value, to_timestamp(u.set_at), u.note \
             FROM fence, {unnest} u (subject, id, service, value, set_at, note) \
             ON CONFLICT (subject, id, service) DO UPDATE SET value = excluded.value, \
             set_at = excluded.set_at, note = excluded.note"
        );
        statement.part("overridden", &part);
    }
    let cleared: Vec<&OverrideKey> =
        overrides.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| *key).collect();
    if !cleared.is_empty() {
        let unnest = statement.unnest(key_columns(&cleared));
        let part = format!(
            "DELETE FROM {schema}.overrides o USING fence, {unnest} u (subject, id, service) \
             WHERE o.subject = u.subject AND o.id = u.id AND o.service = u.service"
        );
        statement.part("cleared", &part);
    }
}

/// A number of the database. Those of the fleet stay below 2^63: they count or are nanoseconds.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Text that the database can keep: PostgreSQL has no NUL in text.
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|byte| byte == 0 || byte == b'\\') {
        Cow::Owned(text.replace('\\', r"\\").replace('\0', r"\0"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The text that [`escaped`] was given; `None` for text that it never returns.
pub(crate) fn unescaped(text: String) -> Option<String> {
    if !text.contains('\\') {
        return Some(text);
    }
    let (mut plain, mut rest) = (String::with_capacity(text.len()), text.chars());
    while let Some(next) = rest.next() {
        plain.push(match (next, next == '\\') {
            (_, false) => next,
            (_, true) => match rest.next()? {
                '\\' => '\\',
                '0' => '\0',
                _ => return None,
            },
        });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_with_nul_and_backslashes_comes_back_as_it_was() {
        for text in ["", "acme", "a\0b", r"\0", "\\", "\0\\\0", "ä\\0"] {
            let kept = escaped(text);
            assert!(!kept.contains('\0'));
            assert_eq!(unescaped(kept.into_owned()).as_deref(), Some(text));
        }
        assert_eq!(unescaped(r"\x".to_owned()), None);
        assert_eq!(unescaped("\\".to_owned()), None);
    }
}
