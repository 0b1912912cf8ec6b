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
    /// This server leads, and may act until this time since boot, once it serves.
    Leader { valid_until: Duration, serves: bool },
}

impl Role {
    /// Checks that the server may act now.
    pub(crate) fn check(self, clock: &dyn Clock) -> Result<(), Unavailable> {
        match self {
            Self::Alone => Ok(()),
            Self::Standby | Self::Leader { serves: false, .. } => Err(Unavailable::Standby),
            Self::Leader { valid_until, .. } if clock.boot() < valid_until => Ok(()),
            Self::Leader { .. } => Err(Unavailable::Lapsed),
        }
    }
}
