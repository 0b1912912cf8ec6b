//! Why a server could not be reached.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// The most addresses that an error names.
const MOST_NAMED: usize = 8;

/// Why a server could not be reached.
#[derive(Debug)]
#[non_exhaustive]
pub enum Unreached {
    /// The host has no address, or could not be resolved.
    NoAddress(io::Error),
    /// Every address that was tried failed.
    Tried {
        /// The error of each address.
        tries: Vec<Try>,
        /// Whether messages show the addresses.
        shown: bool,
    },
}

/// An attempt at one address.
#[derive(Debug)]
pub struct Try {
    /// The address.
    pub address: SocketAddr,
    /// Why it failed.
    pub error: io::Error,
}

impl Unreached {
    /// Whether every address refused the connection.
    pub fn is_refused(&self) -> bool {
        self.tries().iter().all(|one| one.error.kind() == io::ErrorKind::ConnectionRefused)
            && !self.tries().is_empty()
    }

    /// Whether the deadline is the only reason.
    pub fn is_late(&self) -> bool {
        match self {
            Self::NoAddress(error) => error.kind() == io::ErrorKind::TimedOut,
            Self::Tried { tries, .. } => {
                tries.iter().all(|one| one.error.kind() == io::ErrorKind::TimedOut)
            }
        }
    }

    /// The attempts, in the order in which they failed.
    pub fn tries(&self) -> &[Try] {
        match self {
            Self::NoAddress(_) => &[],
            Self::Tried { tries, .. } => tries,
        }
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tries, shown) = match self {
            Self::NoAddress(error) => return write!(f, "the name has no address: {error}"),
            Self::Tried { tries, shown } => (tries, *shown),
        };
        for (index, Try { address, error }) in tries.iter().take(MOST_NAMED).enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            if shown {
                write!(f, "{comma}{address}: {error}")?;
            } else {
                write!(f, "{comma}address {}: {error}", index + 1)?;
            }
        }
        match tries.len().saturating_sub(MOST_NAMED) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl Error for Unreached {}
