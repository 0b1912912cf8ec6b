//! The options of a store.

use std::sync::Arc;
use std::time::Duration;

use lease::Ledger;

use crate::clock::{Clock, SystemClock};
use crate::error::Error;
use crate::journal::Restored;
use crate::records::OperatorRecords;

/// How long a renewal of the leadership is valid by default.
const LEADER_TTL: Duration = Duration::from_secs(5);

/// The options of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most leases it holds at once, whatever the policy allows.
    pub max_leases: u64,
    /// The most bytes that the ids of all leases take up at once.
    pub max_id_bytes: u64,
    /// The clock of the store.
    pub clock: Arc<dyn Clock>,
    /// Whether a damaged file is opened in an older state, without changes that were acknowledged.
    pub accept_older_state: bool,
    /// Where the other servers of a fleet reach this one.
    pub advertised: Box<str>,
    /// The hash of the policy file in force at the start. The other servers of a fleet see it.
    pub policy_hash: Box<str>,
    /// How long a renewal of the leadership of a fleet is valid. It counts for every server while this
    /// one leads.
    pub leader_ttl: Duration,
}

impl Default for Options {
    /// Room for 2,000,000 leases with 512 MiB of ids, and the clocks of the operating system.
    fn default() -> Self {
        let lease::Config { max_leases, max_id_bytes, .. } = lease::Config::default();
        let clock = Arc::new(SystemClock::new());
        Self {
            max_leases,
            max_id_bytes,
            clock,
            accept_older_state: false,
            advertised: "".into(),
            policy_hash: "".into(),
            leader_ttl: LEADER_TTL,
        }
    }
}

impl Options {
    /// Room for what any store keeps.
    pub(crate) fn with_room_for_any() -> Self {
        Self { max_leases: u32::MAX.into(), max_id_bytes: u64::MAX, ..Self::default() }
    }

    /// Returns an empty ledger, without records of operators.
    pub(crate) fn nothing_restored(&self, journal: bool) -> Result<Restored, Error> {
        let Self { max_leases, max_id_bytes, .. } = *self;
        let seed = random_bytes()?;
        let config =
            lease::Config { max_leases, max_id_bytes, seed, journal, ..lease::Config::default() };
        Ok(Restored { ledger: Ledger::new(config), records: OperatorRecords::default() })
    }
}

/// Returns random bytes of the operating system.
pub(crate) fn random_bytes<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| Error::System {
        action: "get random bytes from the operating system",
        source: std::io::Error::other(error),
    })?;
    Ok(bytes)
}
