//! The journal, which keeps the changes of a ledger across restarts.
//!
//! Batches, group commit, recovery and listing are written once, above [`Journal`]. An engine opens
//! or creates a journal, restores its content, and makes one batch after another durable.

pub(crate) mod committer;
pub(crate) mod encoding;
pub(crate) mod engine;
pub(crate) mod etcd;
pub(crate) mod file;
pub(crate) mod fleet_text;
pub(crate) mod keys;
pub(crate) mod postgres;
pub(crate) mod rows;
pub(crate) mod term_journal;
pub(crate) mod watching;

#[cfg(test)]
mod engine_tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use lease::{Ledger, Timestamp};

use crate::answers::Unavailable;
use crate::error::Error;
use crate::records::OperatorRecords;

/// A journal that an engine has opened, and what the store needs beside it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) journal: Box<dyn Journal>,
    /// The path that errors and log lines name.
    pub(crate) path: PathBuf,
    /// Checks whether the journal is still this store's; `None` where nobody can take it away.
    pub(crate) watch: Option<Arc<dyn Watch>>,
}

/// A check whether an open journal is still this store's alone.
pub(crate) trait Watch: fmt::Debug + Send + Sync {
    /// Checks it once. The store calls this every second, after an error too.
    ///
    /// # Errors
    ///
    /// Why the store has to refuse changes from now on.
    fn check(&self) -> Result<(), Unavailable>;
}

/// The counters that a journal writes with each batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Store time.
    pub(crate) time: Timestamp,
    /// The serial number of the next grant.
    pub(crate) next_serial: u64,
}

/// What a journal restores.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) ledger: Ledger,
    pub(crate) records: OperatorRecords,
}

/// Everything that a store keeps, as it is at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) rows: rows::Rows,
    pub(crate) stamp: Stamp,
}

/// An open journal. No other process writes to it.
pub(crate) trait Journal: fmt::Debug + Send {
    /// Restores everything that was committed, and returns the stamp of the last batch.
    ///
    /// # Errors
    ///
    /// The journal is damaged, or lacks a batch that was acknowledged.
    fn load(&mut self, restored: &mut Restored) -> Result<Stamp, Error>;

    /// Makes one batch durable, as one transaction. It is durable when the method returns.
    ///
    /// # Errors
    ///
    /// The journal must not be used after an error: it is unknown what is durable.
    fn commit(&mut self, batch: &rows::Rows, stamp: Stamp) -> Result<(), Error>;

    /// Closes the journal. All batches are durable already; after this the next start has nothing to
    /// repair.
    ///
    /// # Errors
    ///
    /// The journal cannot be written to.
    fn close(self: Box<Self>) -> Result<(), Error>;
}
