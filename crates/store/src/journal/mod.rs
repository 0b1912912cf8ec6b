//! Where the changes of a ledger outlive the process.
//!
//! Batches, group commit, recovery and listing are written once, above [`Journal`]. An engine opens
//! or makes a journal, reads it back, and makes one batch after another durable.

pub(crate) mod encoding;
pub(crate) mod file;
pub(crate) mod rows;

use std::fmt;
use std::path::PathBuf;

use lease::{Change, Invalid, Timestamp};
use policy::overrides::{AuditEntry, OverrideChange};

use crate::answers::Unavailable;
use crate::error::Error;

/// A journal that an engine has opened, and what the store needs beside it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) journal: Box<dyn Journal>,
    /// The path that errors and log lines name.
    pub(crate) path: PathBuf,
    /// Checks whether the journal is still this store's; `None` where nobody can take it away.
    pub(crate) watch: Option<Box<dyn Watch>>,
}

/// A check whether an open journal is still this store's alone.
pub(crate) trait Watch: fmt::Debug + Send {
    /// Checks it once. The store calls this every second, after an error too.
    ///
    /// # Errors
    ///
    /// Why the store has to refuse changes from now on.
    fn check(&self) -> Result<(), Unavailable>;
}

/// What a journal keeps beside the changes, as of one batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Store time.
    pub(crate) time: Timestamp,
    /// The serial number of the next grant.
    pub(crate) next_serial: u64,
}

/// What an operator did, as it goes into a batch.
#[derive(Clone, Debug)]
pub(crate) enum Operated {
    /// An override was set or cleared.
    Override(OverrideChange),
    /// An entry of the audit list, new or amended.
    Audit(AuditEntry),
}

/// Takes what a journal kept.
pub(crate) trait Restore {
    /// Takes what is kept of leases, of what is remembered and of usage.
    ///
    /// # Errors
    ///
    /// It contradicts what was taken before.
    fn change(&mut self, change: Change) -> Result<(), Invalid>;

    /// Takes what is kept of operators.
    fn operated(&mut self, operated: Operated);
}

/// An open journal. Nobody else writes to it meanwhile.
pub(crate) trait Journal: fmt::Debug + Send {
    /// Gives back everything that was committed, and returns the stamp of the last batch.
    ///
    /// # Errors
    ///
    /// The journal is damaged, or lacks a batch that was acknowledged.
    fn load(&mut self, restore: &mut dyn Restore) -> Result<Stamp, Error>;

    /// Makes one batch durable, as one transaction. It is durable when the method returns.
    ///
    /// # Errors
    ///
    /// The journal must not be used after an error: nobody knows what is durable.
    fn commit(&mut self, batch: &rows::Rows, stamp: Stamp) -> Result<(), Error>;

    /// Closes the journal. What was committed is durable already; this only says that nothing has to
    /// be repaired at the next start.
    ///
    /// # Errors
    ///
    /// The journal cannot be written to.
    fn close(self: Box<Self>) -> Result<(), Error>;
}
