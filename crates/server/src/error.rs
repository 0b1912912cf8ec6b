//! Errors of the start and the stop of a server.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use policy::PolicyError;

/// Why a server cannot start, or did not stop cleanly.
///
/// Calls have other errors: [`Unavailable`](store::Unavailable) from the store, and
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
    /// The policy file is invalid.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A setting is invalid.
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
        /// Why. It contains nothing of a key.
        problem: String,
    },
    /// Everybody on the network could borrow.
    #[error(
        "{listen} is not a loopback address and the policy has no indexers: \
         add [[indexers]], or allow anonymous callers explicitly (--allow-anonymous)"
    )]
    Anonymous {
        /// The address that was asked for.
        listen: SocketAddr,
    },
    /// Everybody on the network could use the admin port.
    #[error(
        "the admin address {listen} is not a loopback address and there is no admin token: \
         set one, or listen on loopback"
    )]
    AdminExposed {
        /// The address that was asked for.
        listen: SocketAddr,
    },
    /// A port cannot be opened.
    #[error("cannot listen on {address} for {port}: {source}")]
    Listen {
        /// The purpose of the port.
        port: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be opened, or did not close cleanly.
    #[error(transparent)]
    Store(#[from] store::Error),
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
    /// Whether the same start may succeed later without a change of the configuration.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            error => matches!(error, Self::Listen { .. } | Self::System { .. }),
        }
    }

    /// Whether the configuration is at fault: an invalid policy, URL or address.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Store(error) => error.is_usage(),
            error => !error.is_retryable(),
        }
    }
}
