//! The state machine that holds every rule.

use std::collections::VecDeque;
use std::num::NonZeroU64;

use foldhash::fast::FixedState;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::change::{Change, Ends, TraceEnd};
use crate::clock::Timestamp;
use crate::config::{Config, whole};
use crate::id::LeaseId;
use crate::lease::Lease;
use crate::memory::{Bound, Memory};
use crate::revocation::{RevokedLease, RevokedTrace};
use crate::slab::RECORDS_PER_HOLD;
use crate::table::{ANYBODY, Entry, Table};
use crate::terms::{KeptAlive, MemoryFull, Remembers};
use crate::timer::Timer;
use crate::usage::{UsageBook, UsageBounds};

mod borrowing;
mod ending;
mod enforcing;
mod reading;
mod recovery;
mod remembered_borrow;
mod reporting;
mod revoking;

pub use enforcing::Enforcement;
pub use reading::{ListedLease, PoolReading};
pub use recovery::RESUME_SPREAD;
use remembered_borrow::RememberedBorrow;
pub use reporting::{MAX_SPENT_LISTED, Reporting};

/// Every lease of a server and every rule about them.
///
/// Operations are total and deterministic. A lease that has ended by `now` counts as ended for every
/// answer, so no answer depends on a background task. A `now` before the latest one counts as the
/// latest one. A refused operation changes nothing, except that it may take out leases that have ended.
///
/// Leases that have ended are taken out of the table in parts, so that no operation takes long. Until
/// then they still fill their scopes. See [`Ledger::expire`] and [`Ledger::has_backlog`].
///
/// See the [crate] for an example.
#[derive(Debug)]
pub struct Ledger {
    table: Table,
    timer: Timer,
    now: Timestamp,
    next_serial: NonZeroU64,
    max_leases: u64,
    max_id_bytes: u64,
    secrets: ChaCha8Rng,
    /// The borrow ids, with their leases.
    borrows: Memory<RememberedBorrow>,
    /// Why leases were revoked.
    revoked: Memory<RevokedLease>,
    /// The traces of revoked sessions. They need no bound of their own: each belongs to one revocation,
    /// which is remembered as long.
    revoked_traces: Memory<RevokedTrace>,
    usage: UsageBook,
    changes: Option<Vec<Change>>,
    /// How many changes there were, collected or not.
    revision: u64,
    ends: Ends,
    /// The number of the policy in force; see [`Ledger::refuse_terms_before`].
    policy: u64,
    /// Traces that have ended and still have leases in the table, the first that ended first.
    ended: VecDeque<EndedTrace>,
    records_per_hold: usize,
    /// When an operation last took out leases that have ended.
    begun: Timestamp,
    /// Whether leases that have ended stay in the table for now.
    paused: bool,
    /// How many more sessions may be checked at this point of time, to find out whether their workers
    /// have ended.
    looks: usize,
}

/// A trace that has ended and may have leases to be taken out.
#[derive(Debug)]
struct EndedTrace {
    trace: u32,
    /// Its leases have lower serial numbers than this.
    before: u64,
    /// The change that recorded the end, if one did.
    journaled: Option<Box<TraceEnd>>,
}

impl Ledger {
    /// An empty ledger at [`Timestamp::ZERO`].
    pub fn new(config: Config) -> Self {
        let Config { max_leases, max_id_bytes, seed, journal, records_per_hold, .. } = config;
        let mut secrets = ChaCha8Rng::from_seed(seed);
        let hasher = &FixedState::with_seed(secrets.next_u64());
        let bounds = UsageBounds {
            counts: whole(config.max_counts),
            unknown_counts: whole(config.max_unknown_counts),
            report_keys: whole(config.max_report_keys),
        };
        Self {
            table: Table::new(hasher),
            timer: Timer::new(),
            now: Timestamp::ZERO,
            next_serial: NonZeroU64::MIN,
            max_leases,
            max_id_bytes,
            secrets,
            borrows: Memory::new(Bound::Shared(config.memory_of_borrow_ids()), hasher),
            revoked: Memory::new(Bound::Shared(config.memory_of_leases()), hasher),
            revoked_traces: Memory::new(Bound::Each(usize::MAX), hasher),
            usage: UsageBook::new(bounds, hasher),
            changes: journal.then(Vec::new),
            revision: 0,
            ends: Ends::default(),
            policy: 0,
            ended: VecDeque::new(),
            records_per_hold: records_per_hold.clamp(1, RECORDS_PER_HOLD),
            begun: Timestamp::ZERO,
            paused: false,
            looks: RECORDS_PER_HOLD / 2,
        }
    }

    /// Refuses the terms of policies with a lower number from now on: a caller that looked up terms
    /// before the policy changed has to look them up again.
    pub fn refuse_terms_before(&mut self, policy: u64) {
        self.policy = self.policy.max(policy);
    }

    /// Gives a live lease its full TTL again, if `caller` holds it. Nothing else changes, ever:
    /// what has ended stays ended.
    pub fn keep_alive(&mut self, id: LeaseId, caller: Option<&str>, now: Timestamp) -> KeptAlive {
        self.advance(now);
        if let Some(entry) = self.table.find(id) {
            if !self.table.belongs_to(entry, caller) {
                return KeptAlive::Failed;
            }
            let now = self.now;
            let entry = self.live_at(id.slot).filter(|entry| !entry.lingers());
            return entry
                .map_or(KeptAlive::Failed, |entry| KeptAlive::Extended { ttl: entry.extend(now) });
        }
        // Every caller learns of the revocation of a lease without an indexer.
        let indexers = [Some(ANYBODY), self.table.known_indexer(caller)];
        let revoked = indexers.into_iter().flatten().find_map(|indexer| {
            let revocation = self.revoked.get(indexer, id.serial, now)?;
            Some(revocation).filter(|revoked| revoked.id.proves(id.serial, &id.secret))
        });
        revoked.map_or(KeptAlive::Failed, |revoked| KeptAlive::Revoked(revoked.why.clone()))
    }

    fn memory_full(&self, memory: Remembers, indexer: u32, most: u64) -> MemoryFull {
        MemoryFull { memory, indexer: self.table.indexer_name(indexer).map(Into::into), most }
    }

    fn record(&mut self, change: impl FnOnce() -> Change) {
        self.revision += 1;
        self.collect(change);
    }

    fn collect(&mut self, change: impl FnOnce() -> Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
    }

    /// Everything that changed since the last call, in the order applied; nothing without a journal.
    pub fn drain_changes(&mut self) -> impl Iterator<Item = Change> {
        self.changes.iter_mut().flat_map(|changes| changes.drain(..))
    }

    /// The number of leases in the table: the live ones, and those that have ended and are not taken out.
    pub fn len(&self) -> usize {
        self.table.leases.len()
    }

    /// Whether there is no lease in the table.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The latest `now` of any operation.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// The serial number of the next grant.
    pub const fn next_serial(&self) -> u64 {
        self.next_serial.get()
    }

    /// The number of leases in the table of each service that has any.
    pub fn leases_by_service(&self) -> impl Iterator<Item = (&str, u64)> {
        self.table.leases_by_service()
    }

    fn lease(&self, slot: u32, entry: &Entry) -> Lease {
        let names = self.table.names(entry);
        Lease {
            id: entry.id(slot),
            kind: entry.kind(),
            indexer: names.indexer.map(Into::into),
            service: names.service.into(),
            organization: names.organization.into(),
            api_key: names.api_key.into(),
            trace: names.trace.into(),
            granted_at: entry.granted_at,
            ttl: entry.ttl(),
            lingers_until: entry.lingers().then_some(entry.ends_at),
            borrowed_as: None,
        }
    }

    /// Recomputes every count from the table of leases.
    ///
    /// It takes time in proportion to the table: it is for tests and for a doubt in production.
    ///
    /// # Errors
    ///
    /// The first count that is off, in words.
    pub fn audit(&self) -> Result<(), String> {
        self.table.audit()?;
        self.audit_revoked()?;
        self.audit_ended()
    }
}
