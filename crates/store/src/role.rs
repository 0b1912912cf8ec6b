//! The part of this server in a fleet.

use std::time::Duration;

use crate::answers::Unavailable;
use crate::clock::Clock;

/// The part of a server among those on one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// No other server uses the store.
    Alone,
    /// Another server leads, or none does yet.
    Standby,
    /// This server leads, and may act until this time since boot, while it serves.
    Leader { valid_until: Duration, phase: Phase },
}

/// The phase of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The overrides that came with the term are not in force yet.
    Begins,
    Serves,
    /// The changes that were made are committed, and no more are made: another server takes over.
    StepsDown,
}

impl Role {
    /// Checks that the server may act now.
    pub(crate) fn check(self, clock: &dyn Clock) -> Result<(), Unavailable> {
        match self {
            Self::Alone => Ok(()),
            Self::Leader { valid_until, phase: Phase::Serves } if clock.boot() < valid_until => {
                Ok(())
            }
            Self::Leader { phase: Phase::Serves, .. } => Err(Unavailable::Lapsed),
            Self::Standby | Self::Leader { .. } => Err(Unavailable::Standby),
        }
    }
}
