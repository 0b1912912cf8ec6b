//! Counts leases in this process, by the rules of the session server.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lease::{Config, Kind, LeaseId, Ledger, Limits, MAX_TTL, Refusal, Request, Terms, Timestamp};

use crate::error::{Error, Scope};
use crate::held::Released;

/// How much time may pass for the ledger before every lease is kept alive: the process that holds
/// the leases is the one that counts them, so none ever expires.
const STEP: Duration = Duration::from_secs(24 * 3600);

/// The leases that this process counts, by their numbers.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) ledger: Ledger,
    ids: HashMap<u64, LeaseId>,
    start: Instant,
    /// Until when every lease was kept alive.
    kept: Timestamp,
}

impl Counts {
    /// Makes an empty count. The keys of its ledger come from `seed`.
    pub(crate) fn new(seed: [u8; 32], start: Instant) -> Self {
        let ledger = Ledger::new(Config { seed, ..Config::default() });
        Self { ledger, ids: HashMap::new(), start, kept: Timestamp::ZERO }
    }

    /// Counts one lease more, unless that exceeds one of `limits`.
    pub(crate) fn add(
        &mut self,
        number: u64,
        request: &Request<'_>,
        limits: Limits,
        now: Instant,
    ) -> Result<(), Error> {
        let now = self.advance(now);
        let terms = Terms { limits, ttl: MAX_TTL, ..Terms::default() };
        let (active, max, scope) = match self.ledger.borrow(request, &terms, now) {
            Ok(grant) => {
                self.ids.insert(number, grant.id);
                return Ok(());
            }
            Err(Refusal::Denied(denied)) => (denied.active, denied.max, scope(denied.scope)),
            Err(Refusal::Full { max_leases }) => (max_leases, max_leases, Scope::Pool),
            // There are no budgets here, and borrows have no ids.
            Err(other) => return Err(Error::unavailable(other.to_string())),
        };
        Err(match request.kind() {
            Kind::Session => Error::ConcurrentStreamLimitExceeded { active, max, scope },
            Kind::Worker => Error::WorkersLimitExceeded { active, max, scope },
        })
    }

    /// Counts one lease less. A lease younger than `minimal_life` counts until it is that old.
    pub(crate) fn remove(&mut self, number: u64, minimal_life: Duration, now: Instant) -> Released {
        let now = self.advance(now);
        let Some(id) = self.ids.remove(&number) else { return Released::Missing };
        match self.ledger.release(id, None, minimal_life, now) {
            lease::Released::Returned => Released::Returned,
            lease::Released::Lingers { .. } => Released::Lingers,
            lease::Released::Missing => Released::Missing,
        }
    }

    /// Keeps every lease alive, and returns the present as the ledger counts time.
    fn advance(&mut self, now: Instant) -> Timestamp {
        let now = Timestamp::ZERO + now.saturating_duration_since(self.start);
        while now.since(self.kept) > STEP {
            self.kept = self.kept + STEP;
            for id in self.ids.values() {
                self.ledger.keep_alive(*id, None, self.kept);
            }
        }
        now
    }
}

fn scope(of_ledger: lease::Scope) -> Scope {
    match of_ledger {
        // A service of this ledger stands for all that the pool counts.
        lease::Scope::Service => Scope::Pool,
        lease::Scope::Organization => Scope::Organization,
        lease::Scope::ApiKey => Scope::ApiKey,
        lease::Scope::Trace => Scope::Trace,
    }
}
