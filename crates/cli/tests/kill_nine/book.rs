//! What the clients know: what they hold, what they gave back, and what was never answered.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

/// The organizations that everything is borrowed for.
pub(crate) const ORGANIZATIONS: [&str; 4] = ["acme", "borealis", "cirrus", "delta"];
/// The services, and how many leases one organization may hold of each.
pub(crate) const SERVICES: [(&str, u64); 2] = [("t1r", 6), ("t2w", 9)];

/// The number of a service in [`SERVICES`].
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
    /// A session and its workers have one; no other session has the same.
    pub(crate) trace: String,
}

/// Everything the clients know.
#[derive(Debug, Default)]
pub(crate) struct Book(Mutex<Pages>);

#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Granted for certain, and nobody tried to return it.
    pub(crate) held: HashMap<String, Lease>,
    /// Return sent, answer never seen.
    pub(crate) returning: HashMap<String, Lease>,
    /// Gone for certain.
    pub(crate) gone: HashSet<String>,
    /// Borrow sent, answer never seen, by its borrow id.
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

    /// Writes down that a borrow is sent.
    pub(crate) fn ask(&self, borrow_id: &str, pool: Pool) {
        self.pages().asking.insert(borrow_id.to_owned(), pool);
    }

    /// Writes down that a borrow was refused.
    pub(crate) fn refused(&self, borrow_id: &str) {
        self.pages().asking.remove(borrow_id);
    }

    /// Writes down a grant, which must break no promise: a new key, and no pool over its limit.
    pub(crate) fn granted(&self, borrow_id: &str, key: &str, lease: Lease) {
        let mut pages = self.pages();
        pages.asking.remove(borrow_id);
        pages.acknowledged += 1;
        let known = pages.gone.contains(key) || pages.returning.contains_key(key);
        assert!(!known, "the key {key} was used before");
        let pool = lease.pool;
        let before = pages.held.insert(key.to_owned(), lease);
        assert!(before.is_none(), "the key {key} is held already");
        // Each of these is taken for certain right now, whatever else is under way.
        let held = pages.held_of(pool);
        let (service, limit) = SERVICES[pool.1];
        assert!(held <= limit, "{held} leases of {service} are held, over {limit}");
    }

    /// Writes down that a lease is being returned; a session takes the workers of its trace along.
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

    /// Writes down that the return of these was acknowledged.
    pub(crate) fn returned(&self, keys: &[String]) {
        let mut pages = self.pages();
        pages.acknowledged += 1;
        for key in keys {
            pages.returning.remove(key).unwrap();
            pages.gone.insert(key.clone());
        }
    }

    /// The leases that a client holds for certain.
    pub(crate) fn of(&self, owner: usize) -> Vec<(String, Lease)> {
        let pages = self.pages();
        let of = pages.held.iter().filter(|(_, lease)| lease.owner == owner);
        of.map(|(key, lease)| (key.clone(), lease.clone())).collect()
    }
}

impl Pages {
    /// How many leases of a pool are held for certain.
    pub(crate) fn held_of(&self, pool: Pool) -> u64 {
        self.held.values().filter(|lease| lease.pool == pool).count() as u64
    }

    /// How many more leases of a pool there may be: calls that were never answered.
    pub(crate) fn doubtful_of(&self, pool: Pool) -> u64 {
        let returning = self.returning.values().filter(|lease| lease.pool == pool).count();
        let asking = self.asking.values().filter(|of| **of == pool).count();
        (returning + asking) as u64
    }
}
