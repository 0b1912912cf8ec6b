//! Why a store cannot be opened, or did not close well.

use std::io;
use std::path::PathBuf;

/// Why a store cannot be opened, or did not close well. Operations of an open store have
/// [`Unavailable`](crate::Unavailable).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A store URL that no store understands.
    #[error("{url:?} is not a store: {problem}; the stores are memory: and file:PATH")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folder a store file should be in is not there.
    #[error("cannot make the store {}: the folder {} does not exist", path.display(), parent.display())]
    FolderMissing {
        /// The store file.
        path: PathBuf,
        /// The folder.
        parent: PathBuf,
    },
    /// A store file cannot be opened, made, read or written.
    #[error("cannot {action} the store {}: {source}", path.display())]
    File {
        /// What was tried.
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
    /// A store file that is damaged, or no store file. It was left as it is.
    #[error("the store {} is damaged or not a session store: {problem}; it was left as it is", path.display())]
    Damaged {
        /// The store file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A store file of a format that this version does not know. It was left as it is.
    #[error("the store {} has format {found}, and this version knows format {known}", path.display())]
    Format {
        /// The store file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The format this version writes.
        known: u64,
    },
    /// A store file that reads well and lacks changes that were acknowledged. It was left as it is.
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
    /// The store closed before the disk confirmed its last changes. Nobody was told that they are
    /// durable, and they may be.
    #[error(
        "the store {} was closed with {changes} changes that the disk has not confirmed within {waited:?}",
        path.display()
    )]
    Unconfirmed {
        /// The store file.
        path: PathBuf,
        /// How many changes those were.
        changes: usize,
        /// How long the disk had for them.
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
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// Whether opening the store may work later, without anybody changing the configuration.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. }
                | Self::Failed { .. }
                | Self::Unconfirmed { .. }
                | Self::System { .. }
        )
    }

    /// Whether the configuration is at fault: a URL of no store.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Url { .. })
    }
}
