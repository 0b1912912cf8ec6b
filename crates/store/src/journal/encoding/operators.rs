//! The rows of overrides and of the audit list.

use lease::WallTime;
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};
use prost::Message;

use super::BadRow;

/// The value of an override.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OverrideRow {
    #[prost(uint64, tag = "1")]
    value: u64,
    #[prost(int64, tag = "2")]
    set_at: i64,
    #[prost(string, tag = "3")]
    note: String,
}

impl From<&Override> for OverrideRow {
    fn from(set: &Override) -> Self {
        let Override { value, set_at, note } = set;
        Self { value: *value, set_at: set_at.as_unix(), note: String::from(&**note) }
    }
}

impl OverrideRow {
    /// Reads the override with this key.
    pub(crate) fn read(
        (subject, id, service): (u8, &str, Option<&str>),
        row: &[u8],
    ) -> Result<OverrideChange, BadRow> {
        let bad = BadRow { table: "overrides" };
        let Self { value, set_at, note } = Self::decode(row).map_err(|_| bad)?;
        let subject = self::subject(subject).ok_or(bad)?;
        let key = OverrideKey { subject, id: id.into(), service: service.map(Into::into) };
        let set_at = WallTime::from_unix(set_at);
        Ok(OverrideChange { key, value: Some(Override { value, set_at, note: note.into() }) })
    }
}

/// One audit entry without its number, which is the key of the row.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AuditRow {
    #[prost(int64, tag = "1")]
    at: i64,
    #[prost(string, tag = "2")]
    from: String,
    #[prost(string, tag = "3")]
    action: String,
    #[prost(string, tag = "4")]
    note: String,
    #[prost(uint64, tag = "5")]
    ended: u64,
}

impl From<&AuditEntry> for AuditRow {
    fn from(entry: &AuditEntry) -> Self {
        let AuditEntry { number: _, at, from, action, note, ended } = entry;
        let [from, action, note] = [from, action, note].map(|text| String::from(&**text));
        Self { at: at.as_unix(), from, action, note, ended: *ended }
    }
}

impl AuditRow {
    pub(crate) fn read(number: u64, row: &[u8]) -> Result<AuditEntry, BadRow> {
        let row = Self::decode(row).map_err(|_| BadRow { table: "audit" })?;
        let Self { at, from, action, note, ended } = row;
        let [from, action, note] = [from, action, note].map(String::into_boxed_str);
        Ok(AuditEntry { number, at: WallTime::from_unix(at), from, action, note, ended })
    }
}

/// The number of a subject in rows. Numbers never change their meaning.
pub(crate) const fn subject_number(subject: Subject) -> u8 {
    match subject {
        Subject::Organization => 1,
        Subject::ApiKey => 2,
    }
}

pub(crate) fn subject(number: u8) -> Option<Subject> {
    [Subject::Organization, Subject::ApiKey].into_iter().find(|&it| subject_number(it) == number)
}
