//! The journal in a file of redb tables.
//!
//! One batch of changes is one write transaction, flushed before it is acknowledged. redb keeps a
//! checksum of every page and checks all of them when the file is opened. The number of the last
//! acknowledged batch is noted outside of redb's pages, to distinguish a damaged file from a file
//! whose last commit was interrupted. Nothing is written before the whole file was read.

mod backend;
pub(crate) mod copying;
mod create;
mod lock;
mod note;
mod tables;

use std::fs::OpenOptions;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lease::{Change, StoreClock, Timestamp};
use redb::backends::FileBackend;
use redb::{
    Builder, Database, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    StorageBackend as _, TableDefinition, TableError,
};

pub(crate) use self::backend::Backend;
pub(crate) use self::create::make_folders;
use self::create::{create, remove_unfinished};
use self::lock::{FileWatch, lock_path};
use self::note::Note;
use self::tables::{AUDIT, LEASES, LINGERING, META, OVERRIDES, REMEMBERED, USAGE, create_tables};
use super::encoding::{AuditRow, BadRow, LeaseRow, OverrideRow, RememberedRow, UsedRow};
use super::rows::Rows;
use super::{Journal, Opened, Restored, Stamp, Watch};
use crate::error::Error;
use crate::records::OperatorRecord;

/// The format this version writes.
const FORMAT: u64 = 3;

/// The oldest format this version reads. Format 1 has no overrides and no audit list; format 2 has no
/// borrow ids and traces that have ended.
const OLDEST_FORMAT: u64 = 1;

/// The size of redb's cache. It holds the pages of a hundred thousand leases.
const CACHE_BYTES: usize = 64 << 20;

/// A file is compacted at the start when it is larger than this and mostly empty.
const WORTH_COMPACTING: u64 = 64 << 20;

/// An open store file. It is locked, so that no other server can open it.
#[derive(Debug)]
pub(crate) struct FileJournal {
    database: Database,
    /// The backend of the database.
    backend: Backend,
    path: PathBuf,
    /// Keeps the path locked as long as the journal lives. `None` for a store on another backend.
    watch: Option<Arc<FileWatch>>,
    /// The format of the file.
    format: u64,
    /// The number of the last batch.
    batch: u64,
    /// Whether an older state is accepted when acknowledged batches are missing.
    accept_older_state: bool,
}

impl FileJournal {
    /// Opens the file at `path`, or creates it.
    ///
    /// # Errors
    ///
    /// A file that is no valid store file is not changed. This includes an empty file: the server
    /// never leaves one behind.
    pub(crate) fn open(path: &Path, accept_older_state: bool) -> Result<Self, Error> {
        let failed = |source| Error::File { action: "open", path: path.to_owned(), source };
        let lock = lock_path(path)?;
        if lock.is_some() {
            remove_unfinished(path);
        }
        let open = || OpenOptions::new().read(true).write(true).open(path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path, |file| Self::on(file, path, false)?.close_file())?;
                open()
            }
            opened => opened,
        }
        .map_err(failed)?;
        if file.metadata().map_err(failed)?.len() == 0 {
            let problem = "it is empty; remove it to start without leases".to_owned();
            return Err(Error::Damaged { path: path.to_owned(), problem });
        }
        let watch = FileWatch::of(path, lock, &file).map_err(failed)?;
        let backend =
            FileBackend::new(file).map_err(|error| explain(path, "open", error.into()))?;
        let journal = Self::on(Backend::of_file(backend), path, accept_older_state)?;
        Ok(Self { watch: Some(Arc::new(watch)), ..journal })
    }

    /// Opens the journal on `backend`, or creates it there; `path` is the name of it in errors.
    ///
    /// An existing journal is not written to before [`Journal::load`] has read it.
    pub(crate) fn on(
        backend: Backend,
        path: &Path,
        accept_older_state: bool,
    ) -> Result<Self, Error> {
        let failed = |source| Error::File { action: "open", path: path.to_owned(), source };
        let fresh = backend.len().map_err(failed)? == 0;
        if !fresh {
            backend.hold_back().map_err(failed)?;
        }
        catch_panics(path, || {
            let database = Builder::new()
                .set_cache_size(CACHE_BYTES)
                .set_check_integrity_on_open(true)
                .create_with_backend(backend.clone())
                .map_err(|error| explain(path, "open", error.into()))?;
            let mut journal = Self {
                database,
                backend,
                path: path.to_owned(),
                watch: None,
                format: FORMAT,
                batch: 0,
                accept_older_state,
            };
            if fresh {
                create_tables(&journal.database, FORMAT)
                    .map_err(|error| explain(path, "make", error))?;
            }
            journal.format = journal.known_format()?;
            Ok(journal)
        })
    }

    fn close_file(self) -> Result<(), Error> {
        let Self { database, path, .. } = self;
        database.close().map_err(|error| explain(&path, "close", error.into()))
    }

    fn known_format(&self) -> Result<u64, Error> {
        match self.read_meta("format")? {
            Some((known @ OLDEST_FORMAT..=FORMAT, _)) => Ok(known),
            Some((found, _)) => {
                Err(Error::Format { path: self.path.clone(), found, known: FORMAT })
            }
            None => Err(self.damaged("it carries no format version")),
        }
    }

    fn read_meta(&self, name: &str) -> Result<Option<(u64, u64)>, Error> {
        let explain = |error| explain(&self.path, "read", error);
        let transaction = self.database.begin_read().map_err(|error| explain(error.into()))?;
        match transaction.open_table(META) {
            Ok(meta) => {
                let value = meta.get(name).map_err(|error| explain(error.into()))?;
                Ok(value.map(|value| value.value()))
            }
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(error) => Err(explain(error.into())),
        }
    }

    fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::Damaged { path: self.path.clone(), problem: problem.into() }
    }

    /// Checks that the newest batch in the file is the last one that was acknowledged, and returns
    /// the stamp to continue from.
    fn compare_with_note(&mut self, stamp: Stamp) -> Result<Stamp, Error> {
        let note =
            Note::read(&self.backend).map_err(|error| explain(&self.path, "read", error.into()))?;
        let (found, _) = self.read_meta("batch")?.unwrap_or_default();
        // Numbers continue from the later one, so that the next batch is newer than the note.
        self.batch = found.max(note.batch);
        if found >= note.batch {
            return Ok(stamp);
        }
        let (batches, older_by) = (note.batch - found, note.since(stamp.time));
        let path = self.path.clone();
        if !self.accept_older_state {
            return Err(Error::Older { path, found, acknowledged: note.batch, older_by });
        }
        tracing::error!(
            path = %path.display(),
            batches,
            older_by = ?older_by,
            "the store is damaged and goes on from an older state, as it was told to: the last \
             changes that were acknowledged are lost"
        );
        // Keys are never used again, also not those of the lost leases.
        Ok(Stamp {
            time: stamp.time.max(note.time),
            next_serial: stamp.next_serial.max(note.next_serial),
        })
    }

    /// Reads every row of a table.
    fn for_each_row<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        transaction: &ReadTransaction,
        table: TableDefinition<'_, K, V>,
        mut read: impl FnMut(K::SelfType<'_>, V::SelfType<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let explain = |error| explain(&self.path, "read", error);
        let table = transaction.open_table(table).map_err(|error| explain(error.into()))?;
        for row in table.iter().map_err(|error| explain(error.into()))? {
            let (key, value) = row.map_err(|error| explain(error.into()))?;
            read(key.value(), value.value())?;
        }
        Ok(())
    }

    fn read_all(&self, restored: &mut Restored) -> Result<Stamp, Error> {
        let explain = |error| explain(&self.path, "read", error);
        let bad_row = |error: BadRow| self.damaged(error.to_string());
        let Restored { ledger, records } = restored;
        let mut put_back = |change| {
            let put_back = ledger.restore(change);
            put_back.map_err(|invalid| self.damaged(format!("contradiction: {invalid}")))
        };
        let (time, next_serial) = self.read_meta("stamp")?.unwrap_or_default();
        let stamp = Stamp { time: Timestamp::from_nanos(time), next_serial };
        if stamp.time > StoreClock::LATEST_START {
            // Every lease would expire at once.
            return Err(self.damaged("its store time is centuries ahead"));
        }
        let transaction = self.database.begin_read().map_err(|error| explain(error.into()))?;
        let lingering = transaction.open_table(LINGERING).map_err(|error| explain(error.into()))?;
        self.for_each_row(&transaction, LEASES, |serial, row| {
            let until = lingering.get(serial).map_err(|error| explain(error.into()))?;
            let until = until.map(|until| until.value());
            let lease = LeaseRow::read(serial, row, until).map_err(bad_row)?;
            put_back(Change::Granted(Box::new(lease)))
        })?;
        self.for_each_row(&transaction, REMEMBERED, |key, row| {
            let (until, change) = RememberedRow::read(key, row).map_err(bad_row)?;
            if until > stamp.time { put_back(change) } else { Ok(()) }
        })?;
        self.for_each_row(&transaction, USAGE, |(organization, metric), row| {
            let used = UsedRow::read(row).map_err(bad_row)?;
            let (organization, metric) = (organization.into(), metric.into());
            put_back(Change::Used { organization, metric, used })
        })?;
        if self.format < 2 {
            return Ok(stamp);
        }
        self.for_each_row(&transaction, OVERRIDES, |key, row| {
            let change = OverrideRow::read(key, row).map_err(bad_row)?;
            records.apply(OperatorRecord::Override(change));
            Ok(())
        })?;
        self.for_each_row(&transaction, AUDIT, |number, row| {
            let entry = AuditRow::read(number, row).map_err(bad_row)?;
            records.apply(OperatorRecord::Audit(entry));
            Ok(())
        })?;
        Ok(stamp)
    }

    /// Compacts a file that is larger than `worth` and whose rows fit into an eighth of it.
    fn compact_if_mostly_empty(&mut self, worth: u64) -> Result<(), Error> {
        let Ok(size) = std::fs::metadata(&self.path).map(|metadata| metadata.len()) else {
            return Ok(()); // no file: the store is on another backend
        };
        let explain = |error| explain(&self.path, "compact", error);
        if size <= worth || self.bytes_in_rows().map_err(explain)? >= size / 8 {
            return Ok(());
        }
        self.database.compact().map_err(|error| explain(error.into()))?;
        tracing::info!(bytes_before = size, "compacted the store");
        Ok(())
    }

    /// The bytes of the rows of all tables, keys included.
    fn bytes_in_rows(&self) -> Result<u64, redb::Error> {
        let transaction = self.database.begin_read()?;
        let mut bytes = 0;
        for table in transaction.list_tables()? {
            bytes += transaction.open_untyped_table(table)?.stats()?.stored_bytes();
        }
        Ok(bytes)
    }
}

impl From<FileJournal> for Opened {
    fn from(journal: FileJournal) -> Self {
        let path = journal.path.clone();
        let watch = journal.watch.clone().map(|watch| watch as Arc<dyn Watch>);
        Self { journal: Box::new(journal), path, watch }
    }
}

impl Journal for FileJournal {
    /// A file of an older format is upgraded. A file that cannot be read is not changed.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when a row cannot be read or contradicts another, and [`Error::Older`] when
    /// a batch is missing that was acknowledged, unless an older state is accepted.
    fn load(&mut self, restored: &mut Restored) -> Result<Stamp, Error> {
        let stamp = catch_panics(&self.path, || self.read_all(restored))?;
        let stamp = self.compare_with_note(stamp)?;
        self.backend
            .write_held_back()
            .map_err(|error| explain(&self.path, "open", error.into()))?;
        if self.format < FORMAT {
            create_tables(&self.database, FORMAT)
                .map_err(|error| explain(&self.path, "upgrade", error))?;
            tracing::info!(from = self.format, to = FORMAT, "upgraded the format of the store");
            self.format = FORMAT;
        }
        self.compact_if_mostly_empty(WORTH_COMPACTING)?;
        Ok(stamp)
    }

    fn commit(&mut self, batch: &Rows, stamp: Stamp) -> Result<(), Error> {
        let Stamp { time, next_serial } = stamp;
        let note = Note { batch: self.batch + 1, time, next_serial };
        tables::write(batch, &self.database, stamp, note.batch)
            .map_err(|error| explain(&self.path, "write", error))?;
        // After the batch is on the disk, and before it is acknowledged.
        note.write(&self.backend).map_err(|error| explain(&self.path, "write", error.into()))?;
        self.batch = note.batch;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        self.close_file()
    }
}

/// Runs `read` on a file that may be damaged. A panic of redb on invalid pages becomes an error.
fn catch_panics<T>(path: &Path, read: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::Damaged {
            path: path.to_owned(),
            problem: "its pages contradict each other".to_owned(),
        })
    })
}

/// Turns an error of redb into an error that the operator understands.
fn explain(path: &Path, action: &'static str, error: redb::Error) -> Error {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => Error::InUse { path },
        redb::Error::Io(source)
            if !matches!(
                source.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            Error::File { action, path, source }
        }
        other => Error::Damaged { path, problem: other.to_string() },
    }
}

#[cfg(test)]
mod tests;
