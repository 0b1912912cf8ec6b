//! Ids as clients send them: organizations and API keys of 18 bytes, traces of 32 hex digits.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use wire::worker::BorrowWorkerRequest;

/// Organizations that callers borrow for.
pub const ORGANIZATIONS: u64 = 10_000;

/// Bytes of an organization or API key id.
pub const ID_BYTES: usize = 18;

/// The service of sessions, as substreams and firehose name it.
pub const SESSIONS: &str = "t1r";

/// The service of workers, as substreams names it.
pub const WORKERS: &str = "t2w";

/// The `n`-th organization.
pub fn organization(n: u64) -> String {
    format!("org-{:014x}", scattered(n))
}

/// The API key id of the `n`-th organization.
pub fn api_key(n: u64) -> String {
    format!("key-{:014x}", scattered(n))
}

/// The number of the organization that comes in turn `turn`: neighbouring turns get different ones. The
/// stride has no common factor with [`ORGANIZATIONS`], so that every organization comes.
pub const fn in_turn(turn: u64) -> u64 {
    turn.wrapping_mul(7919) % ORGANIZATIONS
}

/// A request for a session of the `n`-th organization.
pub fn borrow_request(n: u64, trace_id: String) -> BorrowWorkerRequest {
    BorrowWorkerRequest {
        service: SESSIONS.into(),
        organization_id: organization(n),
        api_key_id: api_key(n),
        trace_id,
        max_worker_for_trace_id: 0,
    }
}

/// Spreads small numbers over 56 bits, so that ids do not share long prefixes. Odd multiplication
/// is a bijection, so no two ids are equal.
const fn scattered(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & 0x00ff_ffff_ffff_ffff
}

/// An endless supply of different trace ids, the same in every run.
#[derive(Debug)]
pub struct Traces(StdRng);

impl Traces {
    /// The supply that `seed` names.
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// One more trace id, 32 hex digits.
    pub fn next_id(&mut self) -> String {
        format!("{:032x}", self.0.random::<u128>())
    }

    /// One more borrow id, as the client library sends it with every borrow.
    pub fn next_borrow_id(&mut self) -> u128 {
        self.0.random()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_have_the_length_of_real_ones_and_differ() {
        let ids: HashSet<String> = (0..10_000).map(organization).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| id.len() == ID_BYTES));
        assert_eq!(api_key(7).len(), ID_BYTES);
        let mut traces = Traces::new(1);
        let (first, second) = (traces.next_id(), traces.next_id());
        assert_eq!((first.len(), second.len()), (32, 32));
        assert_ne!(first, second);
        assert_eq!(Traces::new(1).next_id(), first);
    }
}
