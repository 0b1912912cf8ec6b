//! Why no server could be reached.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::host::Shown;

/// The most addresses that an error names.
const MOST_NAMED: usize = 8;

/// Why no server of a list could be reached.
#[derive(Debug)]
pub struct Unreached {
    /// The servers, in the order of the list, as messages show them.
    pub(crate) hosts: Vec<Shown>,
    /// The attempts that failed, in this order. There is at least one.
    pub(crate) tries: Vec<Try>,
}

/// An attempt at one address, or at the name of a server.
#[derive(Debug)]
pub(crate) struct Try {
    /// The number of the server in the list.
    pub(crate) host: usize,
    /// The address; `None` if the name could not be resolved.
    pub(crate) address: Option<SocketAddr>,
    /// Why it failed.
    pub(crate) error: io::Error,
}

impl Unreached {
    /// Whether every address refused the connection.
    pub fn is_refused(&self) -> bool {
        self.tries.iter().all(|one| one.error.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Whether the deadline is the only reason.
    pub fn is_late(&self) -> bool {
        self.tries.iter().all(|one| one.error.kind() == io::ErrorKind::TimedOut)
    }

    /// Returns the error of the resolver, if the name of the only server has no address.
    pub fn no_address(&self) -> Option<&io::Error> {
        match (&*self.hosts, &*self.tries) {
            ([_], [Try { address: None, error, .. }]) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(error) = self.no_address() {
            return write!(f, "the name has no address: {error}");
        }
        for (index, Try { host, address, error }) in self.tries.iter().take(MOST_NAMED).enumerate()
        {
            let comma = if index > 0 { ", " } else { "" };
            let shown = &self.hosts[*host];
            match address {
                None => write!(f, "{comma}{} has no address: {error}", shown.place)?,
                Some(address) if !shown.hides_addresses => write!(f, "{comma}{address}: {error}")?,
                Some(_) => write!(f, "{comma}address {}: {error}", index + 1)?,
            }
        }
        match self.tries.len().saturating_sub(MOST_NAMED) {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

impl Error for Unreached {}
