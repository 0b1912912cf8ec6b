//! Copies a store that nobody uses to another place, on another engine too.

use std::time::Duration;

use lease::Change;
use policy::overrides::OverrideChange;

use crate::contents::RecordCounts;
use crate::error::Error;
use crate::journal::etcd::copying::Unused;
use crate::journal::file::FileJournal;
use crate::journal::file::copying::create_whole;
use crate::journal::postgres::copying::Exclusive;
use crate::journal::rows::Rows;
use crate::journal::{Journal as _, Restored, Snapshot, Stamp};
use crate::options::{Options, random_bytes};
use crate::records::OperatorRecord;
use crate::url::{DatabaseUrl, StoreUrl};

/// How many records are written at once.
const PART: usize = 8_192;

/// How far copying is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CopyProgress {
    /// A database is watched for so long, because a server may still lead its fleet.
    Watching(Duration),
    /// The source is read.
    Reading,
    /// So many of so many records are written.
    Writing(u64, u64),
    /// The copy is read back and counted.
    Counting,
}

/// Copies everything that the store `from` keeps to the new store `to`, and returns what was copied.
///
/// No server may use either of them, and none can start on them meanwhile. The copy is whole or does not
/// exist: a process that is killed leaves no store at `to`. Blocks.
///
/// # Errors
///
/// A store cannot be opened or is in use, `to` is not empty, or the copy differs from its source. Then
/// nothing was copied. When the database does not confirm the end, the copy may exist.
pub fn copy(
    from: &StoreUrl,
    to: &StoreUrl,
    progress: &mut dyn FnMut(CopyProgress),
) -> Result<RecordCounts, Error> {
    let mut source = Source::open(from, progress)?;
    progress(CopyProgress::Reading);
    let mut restored = nothing_restored()?;
    let stamp = source.read(&mut restored)?;
    let expected = RecordCounts::of(&restored);
    let mut writing = Writing { restored: &restored, stamp, total: expected.total(), progress };
    match to {
        StoreUrl::Memory => return Err(keeps_nothing()),
        StoreUrl::File { path, make_folders } => {
            let path = StoreUrl::prepare(path, *make_folders)?;
            create_whole(&path, |journal| {
                writing.write(|rows, stamp| journal.commit(rows, stamp))?;
                (writing.progress)(CopyProgress::Counting);
                let mut copied = nothing_restored()?;
                journal.read(&mut copied)?;
                compare(expected, &copied)?;
                source.end()
            })?;
        }
        StoreUrl::Postgres(url) => {
            let mut target = open_database(url, writing.progress)?;
            target.prepare_empty(random_bytes()?, Options::default().leader_ttl)?;
            writing.write(|rows, stamp| target.write(rows, stamp))?;
            (writing.progress)(CopyProgress::Counting);
            let mut copied = nothing_restored()?;
            target.read(&mut copied)?;
            compare(expected, &copied)?;
            source.end()?;
            target.commit()?;
        }
        StoreUrl::Etcd(url) => {
            let mut target = open_etcd(url, writing.progress)?;
            if target.exists() {
                let mut restored = nothing_restored()?;
                target.read(&mut restored)?;
                check_empty("keys", url, RecordCounts::of(&restored))?;
            }
            (writing.progress)(CopyProgress::Writing(0, writing.total));
            let changes = restored.ledger.snapshot().collect();
            let rows = Rows::collect(changes, operator_records(&restored).collect());
            source.end()?;
            let leader_ttl = Options::default().leader_ttl;
            target.write(random_bytes()?, leader_ttl, Snapshot { rows, stamp })?;
            // Only what has happened can be read.
            (writing.progress)(CopyProgress::Counting);
            let mut copied = nothing_restored()?;
            target.read(&mut copied)?;
            compare(expected, &copied)?;
        }
    }
    Ok(expected)
}

/// The store that is copied. Nobody else can use it.
enum Source {
    File(FileJournal),
    Postgres(Box<Exclusive>),
    Etcd(Box<Unused>),
}

impl Source {
    fn open(url: &StoreUrl, progress: &mut dyn FnMut(CopyProgress)) -> Result<Self, Error> {
        match url {
            StoreUrl::Memory => Err(keeps_nothing()),
            StoreUrl::File { path, .. } => {
                Ok(Self::File(FileJournal::open_existing(&StoreUrl::file(path))?))
            }
            StoreUrl::Postgres(url) => Ok(Self::Postgres(Box::new(open_database(url, progress)?))),
            StoreUrl::Etcd(url) => Ok(Self::Etcd(Box::new(open_etcd(url, progress)?))),
        }
    }

    fn read(&mut self, restored: &mut Restored) -> Result<Stamp, Error> {
        match self {
            Self::File(journal) => journal.read(restored),
            Self::Postgres(database) => database.read(restored),
            Self::Etcd(keys) => keys.read(restored),
        }
    }

    /// Checks that nobody has used it meanwhile.
    fn end(&mut self) -> Result<(), Error> {
        match self {
            Self::File(_) => Ok(()),
            Self::Postgres(database) => database.end(),
            Self::Etcd(keys) => keys.end(),
        }
    }
}

fn open_database(
    url: &DatabaseUrl,
    progress: &mut dyn FnMut(CopyProgress),
) -> Result<Exclusive, Error> {
    Exclusive::open(url.postgres()?, &mut |time| progress(CopyProgress::Watching(time)))
}

fn open_etcd(url: &DatabaseUrl, progress: &mut dyn FnMut(CopyProgress)) -> Result<Unused, Error> {
    Unused::open(url.etcd()?, &mut |time| progress(CopyProgress::Watching(time)))
}

/// What is written, and who is told about it.
struct Writing<'a> {
    restored: &'a Restored,
    stamp: Stamp,
    total: u64,
    progress: &'a mut dyn FnMut(CopyProgress),
}

impl Writing<'_> {
    /// Writes everything in parts.
    fn write(
        &mut self,
        mut write: impl FnMut(&Rows, Stamp) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Self { restored, stamp, total, progress } = self;
        let mut done = 0;
        let mut write = |changes: Vec<Change>, records: Vec<OperatorRecord>| {
            progress(CopyProgress::Writing(done, *total));
            done += (changes.len() + records.len()) as u64;
            write(&Rows::collect(changes, records), *stamp)
        };
        let mut records = operator_records(restored).peekable();
        while records.peek().is_some() {
            write(Vec::new(), records.by_ref().take(PART).collect())?;
        }
        let mut changes = restored.ledger.snapshot().peekable();
        while changes.peek().is_some() {
            write(changes.by_ref().take(PART).collect(), Vec::new())?;
        }
        // Without any record too, the store goes on from the same stamp.
        write(Vec::new(), Vec::new())
    }
}

/// All overrides, and the audit list.
fn operator_records(restored: &Restored) -> impl Iterator<Item = OperatorRecord> {
    let overrides = restored.records.overrides.iter().map(|(key, value)| {
        let value = Some(value.clone());
        OperatorRecord::Override(OverrideChange { key: key.clone(), value })
    });
    overrides.chain(restored.records.audit.iter().cloned().map(OperatorRecord::Audit))
}

/// An empty ledger with room for any store.
fn nothing_restored() -> Result<Restored, Error> {
    Options::with_room_for_any().nothing_restored(true)
}

fn compare(expected: RecordCounts, copied: &Restored) -> Result<(), Error> {
    let found = RecordCounts::of(copied);
    if found == expected {
        return Ok(());
    }
    Err(Error::NotCopied { problem: format!("the copy has {found:?} instead of {expected:?}") })
}

fn check_empty(what: &str, url: &DatabaseUrl, found: RecordCounts) -> Result<(), Error> {
    match found.total() {
        0 => Ok(()),
        rows => {
            let problem = format!("the {what} of {url} have {rows} rows already");
            Err(Error::NotCopied { problem })
        }
    }
}

fn keeps_nothing() -> Error {
    Error::NotCopied { problem: "the store memory: keeps nothing".to_owned() }
}

#[cfg(test)]
mod tests;
