//! What can go wrong outside of a call.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use policy::PolicyError;

/// Why a server cannot start, or did not stop well.
///
/// Calls have errors of their own: [`Unavailable`](crate::store::Unavailable) from the store, and
/// gRPC statuses on the wire.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The policy file cannot be read.
    #[error("cannot read the policy file {}: {source}", path.display())]
    PolicyUnreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The policy file is not a sound policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A setting that cannot be meant.
    #[error("{name}: {problem}")]
    Setting {
        /// The name of the setting, as it stands in a file.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that TLS needs cannot be used.
    #[error("cannot use {} for TLS: {problem}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why. Nothing of a key is in it.
        problem: String,
    },
    /// Everybody in reach could borrow.
    #[error(
        "{listen} is not a loopback address and the policy has no indexers: \
         add [[indexers]], or allow anonymous callers explicitly (--allow-anonymous)"
    )]
    Anonymous {
        /// The address that was asked for.
        listen: SocketAddr,
    },
    /// Everybody in reach could look at the admin port.
    #[error(
        "the admin address {listen} is not a loopback address and there is no admin token: \
         set one, or listen on loopback"
    )]
    AdminExposed {
        /// The address that was asked for.
        listen: SocketAddr,
    },
    /// A port cannot be had.
    #[error("cannot listen on {address} for {port}: {source}")]
    Listen {
        /// What the port is for.
        port: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A store URL that no store understands.
    #[error("{url:?} is not a store: {problem}; the stores are memory: and file:PATH")]
    StoreUrl {
        /// The URL.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The folder a store file should be in is not there.
    #[error("cannot make the store {}: the folder {} does not exist", path.display(), parent.display())]
    StoreFolderMissing {
        /// The store file.
        path: PathBuf,
        /// The folder.
        parent: PathBuf,
    },
    /// A store file cannot be opened, made, read or written.
    #[error("cannot {action} the store {}: {source}", path.display())]
    StoreFile {
        /// What was tried.
        action: &'static str,
        /// The store file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server has the store open.
    #[error("the store {} is in use by another server", path.display())]
    StoreInUse {
        /// The store file.
        path: PathBuf,
    },
    /// A store file that is damaged, or no store file. It was left as it is.
    #[error("the store {} is damaged or not a session store: {problem}; it was left as it is", path.display())]
    StoreDamaged {
        /// The store file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A store file of a format that this version does not know. It was left as it is.
    #[error("the store {} has format {found}, and this version knows format {known}", path.display())]
    StoreFormat {
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
    StoreOlder {
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
    StoreUnconfirmed {
        /// The store file.
        path: PathBuf,
        /// How many changes those were.
        changes: usize,
        /// How long the disk had for them.
        waited: std::time::Duration,
    },
    /// The store failed while it ran, or the last changes could not be made durable.
    #[error("the store failed: {problem}")]
    StoreFailed {
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
    /// Whether the same start may work later, without anybody changing the configuration.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Listen { .. }
                | Self::StoreInUse { .. }
                | Self::StoreFailed { .. }
                | Self::StoreUnconfirmed { .. }
                | Self::System { .. }
        )
    }

    /// Whether the configuration is at fault: a policy, a URL or an address that cannot be meant.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::PolicyUnreadable { .. }
                | Self::Policy(_)
                | Self::Setting { .. }
                | Self::Tls { .. }
                | Self::Anonymous { .. }
                | Self::AdminExposed { .. }
                | Self::StoreUrl { .. }
        )
    }
}
