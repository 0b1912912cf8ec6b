//! Records what the clients know of each lease: held, returned, or uncertain.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

/// The organizations of all leases.
pub(crate) const ORGANIZATIONS: [&str; 4] = ["acme", "borealis", "cirrus", "delta"];
/// The services, and how many leases one organization may hold of each.
pub(crate) const SERVICES: [(&str, u64); 2] = [("t1r", 6), ("t2w", 9)];

/// The indexes of the services in [`SERVICES`].
pub(crate) const SESSIONS: usize = 0;
pub(crate) const WORKERS: usize = 1;

/// An organization and a service: what one limit applies to.
pub(crate) type Pool = (usize, usize);

/// One lease whose grant was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    /// The client that borrowed it.
    pub(crate) owner: usize,
    pub(crate) pool: Pool,
    /// The trace id that a session and its workers share. Each session has a different one.
    pub(crate) trace: String,
}

/// Everything that the clients know about their leases.
#[derive(Debug, Default)]
pub(crate) struct Book(Mutex<Pages>);

#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Leases whose grant was acknowledged and whose return was not sent.
    pub(crate) held: HashMap<String, Lease>,
    /// Leases whose return was sent and not answered.
    pub(crate) returning: HashMap<String, Lease>,
    /// Keys of leases that are certainly gone.
    pub(crate) gone: HashSet<String>,
    /// Borrows that were sent and not answered, by borrow id.
    pub(crate) asking: BTreeMap<String, Pool>,
    acknowledged: u64,
}

impl Book {
    pub(crate) fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap()
    }

    /// How many borrows and returns were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.pages().acknowledged
    }

    /// Records that a borrow is sent.
    pub(crate) fn ask(&self, borrow_id: &str, pool: Pool) {
        self.pages().asking.insert(borrow_id.to_owned(), pool);
    }

    /// Records that a borrow was refused.
    pub(crate) fn refused(&self, borrow_id: &str) {
        self.pages().asking.remove(borrow_id);
    }

    /// Records a grant. The key must be new, and the pool must stay within its limit.
    pub(crate) fn granted(&self, borrow_id: &str, key: &str, lease: Lease) {
        let mut pages = self.pages();
        pages.asking.remove(borrow_id);
        pages.acknowledged += 1;
        let known = pages.gone.contains(key) || pages.returning.contains_key(key);
        assert!(!known, "the key {key} was used before");
        let pool = lease.pool;
        let before = pages.held.insert(key.to_owned(), lease);
        assert!(before.is_none(), "the key {key} is held already");
        // The leases in `held` certainly count now, whatever the result of the calls in flight.
        let held = pages.held_of(pool);
        let (service, limit) = SERVICES[pool.1];
        assert!(held <= limit, "{held} leases of {service} are held, over {limit}");
    }

    /// Records that the return of a lease is sent. A session is returned with the workers of its
    /// trace.
    pub(crate) fn returning(&self, key: &str) -> Vec<String> {
        let mut pages = self.pages();
        let lease = pages.held[key].clone();
        let takes_workers = lease.pool.1 == SESSIONS;
        let keys: Vec<String> = pages
            .held
            .iter()
            .filter(|(other, held)| *other == key || takes_workers && held.trace == lease.trace)
            .map(|(key, _)| key.clone())
            .collect();
        for key in &keys {
            let lease = pages.held.remove(key).unwrap();
            pages.returning.insert(key.clone(), lease);
        }
        keys
    }

    /// Records that the return of these leases was acknowledged.
    pub(crate) fn returned(&self, keys: &[String]) {
        let mut pages = self.pages();
        pages.acknowledged += 1;
        for key in keys {
            pages.returning.remove(key).unwrap();
            pages.gone.insert(key.clone());
        }
    }

    /// The leases that a client certainly holds.
    pub(crate) fn of(&self, owner: usize) -> Vec<(String, Lease)> {
        let pages = self.pages();
        let of = pages.held.iter().filter(|(_, lease)| lease.owner == owner);
        of.map(|(key, lease)| (key.clone(), lease.clone())).collect()
    }
}

impl Pages {
    /// How many leases of a pool are certainly held.
    pub(crate) fn held_of(&self, pool: Pool) -> u64 {
        self.held.values().filter(|lease| lease.pool == pool).count() as u64
    }

    /// How many more leases of a pool may exist, because a borrow or a return was not answered.
    pub(crate) fn doubtful_of(&self, pool: Pool) -> u64 {
        let returning = self.returning.values().filter(|lease| lease.pool == pool).count();
        let asking = self.asking.values().filter(|of| **of == pool).count();
        (returning + asking) as u64
    }
}
