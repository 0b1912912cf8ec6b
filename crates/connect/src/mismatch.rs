//! The error that one end speaks TLS and the other does not.

use std::error::Error;
use std::io;

use crate::unreached::Unreached;

/// One end speaks TLS and the other does not. Trying again does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The server speaks TLS, and the client does not.
    #[error("the server speaks TLS")]
    Tls,
    /// The client speaks TLS, and the server does not.
    #[error("the server does not speak TLS")]
    Plaintext,
}

impl Mismatch {
    /// Looks for a mismatch among `error` and its causes.
    pub fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(mismatch) = error.downcast_ref() {
                return Some(*mismatch);
            }
            if let Some(unreached) = error.downcast_ref::<Unreached>() {
                return Self::of_every_server(unreached);
            }
            // The error that an I/O error wraps is not its source: the source skips it.
            cause = match error.downcast_ref().and_then(io::Error::get_ref) {
                Some(wrapped) => Some(wrapped),
                None => error.source(),
            };
        }
        None
    }

    /// Returns the mismatch, if every server of the list has one. With another server the next attempt
    /// may succeed.
    fn of_every_server(unreached: &Unreached) -> Option<Self> {
        let mut found = None;
        for host in 0..unreached.hosts.len() {
            let mut tries = unreached.tries.iter().filter(|one| one.host == host);
            found = Some(tries.find_map(|one| Self::of(&one.error))?);
        }
        found
    }
}

impl From<Mismatch> for io::Error {
    fn from(mismatch: Mismatch) -> Self {
        Self::other(mismatch)
    }
}
