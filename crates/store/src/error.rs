//! Why a store cannot be opened, or did not close well.

use std::io;
use std::path::PathBuf;

/// Why a store cannot be opened, or did not close well. Operations of an open store have
/// [`Unavailable`](crate::Unavailable).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid store URL.
    #[error(
        "{url:?} is not a store: {problem}; the stores are memory:, file:PATH, postgres://… and etcd://…"
    )]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folder of a store file does not exist.
    #[error("cannot make the store {}: the folder {} does not exist", path.display(), parent.display())]
    FolderMissing {
        /// The store file.
        path: PathBuf,
        /// The folder.
        parent: PathBuf,
    },
    /// A store file cannot be opened, created, read or written.
    #[error("cannot {action} the store {}: {source}", path.display())]
    File {
        /// The action that failed.
        action: &'static str,
        /// The store file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has the store open.
    #[error("the store {} is in use by another server", path.display())]
    InUse {
        /// The store file.
        path: PathBuf,
    },
    /// The file is damaged, or is no store file. It was not changed.
    #[error("the store {} is damaged or not a session store: {problem}; it was left as it is", path.display())]
    Damaged {
        /// The store file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The store file has a format that this version does not know. It was not changed.
    #[error("the store {} has format {found}, and this version knows format {known}", path.display())]
    Format {
        /// The store file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format this version writes.
        known: u64,
    },
    /// The store file can be read but lacks changes that were acknowledged. It was not changed.
    #[error(
        "the store {} is damaged: batch {acknowledged} of changes was acknowledged, and the newest that \
         can be read is batch {found}, older by {older_by:?}; it was left as it is. Restore a copy, or \
         go on from the older state with --accept-older-state",
        path.display()
    )]
    Older {
        /// The store file.
        path: PathBuf,
        /// The number of the newest batch that can be read.
        found: u64,
        /// The number of the last batch that was acknowledged.
        acknowledged: u64,
        /// The store time between the two.
        older_by: std::time::Duration,
    },
    /// A store was not copied.
    #[error("nothing was copied: {problem}")]
    NotCopied {
        /// Why.
        problem: String,
    },
    /// A database cannot be a store, or does not answer.
    #[error("the store {url} cannot be used: {problem}")]
    Database {
        /// The URL without secrets.
        url: String,
        /// What is wrong.
        problem: String,
    },
    /// Another server of the fleet has taken over.
    #[error("another server of the fleet leads")]
    Deposed,
    /// The store closed before the disk confirmed its last changes. No caller was told that they are
    /// durable; they may be.
    #[error(
        "the store {} was closed with {changes} changes that the disk has not confirmed within {waited:?}",
        path.display()
    )]
    Unconfirmed {
        /// The store file.
        path: PathBuf,
        /// The number of changes without confirmation.
        changes: usize,
        /// How long the store waited.
        waited: std::time::Duration,
    },
    /// The store failed while it ran, or the last changes could not be made durable.
    #[error("the store failed: {problem}")]
    Failed {
        /// What happened.
        problem: String,
    },
    /// The operating system refused a thread, a timer or random bytes.
    #[error("cannot {action}: {source}")]
    System {
        /// The action that failed.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Whether opening the store may succeed later with the same configuration.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. }
                | Self::Failed { .. }
                | Self::Unconfirmed { .. }
                | Self::System { .. }
        )
    }

    /// Whether the configuration is wrong: the store URL is invalid.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Url { .. })
    }
}
