//! A store file that is read or written as a whole, while no server uses it.

use std::io;
use std::path::Path;

use redb::{ReadTransaction, ReadableDatabase as _, ReadableTableMetadata as _, TableDefinition};
use redb::{TableError, Value};

use super::create::{create, remove_unfinished};
use super::lock::lock_path;
use super::tables::{AUDIT, LEASES, LINGERING, OVERRIDES, REMEMBERED, USAGE};
use super::{FileJournal, catch_panics, explain};
use crate::contents::{Inspected, RecordCounts};
use crate::error::Error;
use crate::journal::{Restored, Stamp};

impl FileJournal {
    /// Opens the file at `path`, and keeps servers from using it. It is not changed.
    ///
    /// # Errors
    ///
    /// As [`FileJournal::open`], and when there is no file.
    pub(crate) fn open_existing(path: &Path) -> Result<Self, Error> {
        std::fs::metadata(path).map_err(|source| Error::File {
            action: "open",
            path: path.to_owned(),
            source,
        })?;
        Self::open(path, false)
    }

    /// Reads everything. An existing file is not changed, also if it has an older format.
    pub(crate) fn read(&mut self, restored: &mut Restored) -> Result<Stamp, Error> {
        let stamp = catch_panics(&self.path, || self.read_all(restored))?;
        self.compare_with_note(stamp)
    }

    /// Counts what is in the file.
    pub(crate) fn inspect(&self) -> Result<Inspected, Error> {
        let (sequence, _) = self.read_meta("batch")?.unwrap_or_default();
        let (_, next_serial) = self.read_meta("stamp")?.unwrap_or_default();
        let records = catch_panics(&self.path, || {
            self.count_records().map_err(|error| explain(&self.path, "read", error))
        })?;
        let (version, fleet, members) = (self.format, None, Vec::new());
        Ok(Inspected { version, records, sequence, next_serial, fleet, members })
    }

    fn count_records(&self) -> Result<RecordCounts, redb::Error> {
        let transaction = self.database.begin_read()?;
        Ok(RecordCounts {
            leases: len(&transaction, LEASES)?,
            lingering: len(&transaction, LINGERING)?,
            remembered: len(&transaction, REMEMBERED)?,
            usage: len(&transaction, USAGE)?,
            overrides: len(&transaction, OVERRIDES)?,
            audit: len(&transaction, AUDIT)?,
        })
    }
}

/// The rows of a table; none where an older format lacks the table.
fn len<K: redb::Key + 'static, V: Value + 'static>(
    transaction: &ReadTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<u64, redb::Error> {
    match transaction.open_table(table) {
        Ok(table) => Ok(table.len()?),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// Creates the store file at `path` with what `fill` writes. The file has its name only when it is
/// complete, so a process that is killed leaves no store.
///
/// # Errors
///
/// There is a file already, or it cannot be written.
pub(crate) fn create_whole(
    path: &Path,
    fill: impl FnOnce(&mut FileJournal) -> Result<(), Error>,
) -> Result<(), Error> {
    // Keeps servers from making a store there.
    let lock = lock_path(path)?;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        _ => {
            let problem = format!("there is something at {} already", path.display());
            return Err(Error::NotCopied { problem });
        }
    }
    if lock.is_some() {
        remove_unfinished(path);
    }
    create(path, |backend| {
        let mut journal = FileJournal::on(backend, path, false)?;
        fill(&mut journal)?;
        journal.close_file()
    })
}
