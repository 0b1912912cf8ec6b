//! The state machine that holds every rule.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

use foldhash::fast::FixedState;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::budget::{Budget, BudgetSpent, Usage, WallTime};
use crate::change::{Change, Ends};
use crate::memory::Memory;
use crate::scope::{Scope, forms_a_scope};
use crate::table::{Entry, NewLease, Place, Sessions, Table, whole_milliseconds};
use crate::terms::{Denied, Grant, KeptAlive, Refusal, Terms};
use crate::timer::Timer;
use crate::types::{
    BorrowId, BorrowedAs, Invalid, Kind, Lease, LeaseId, MAX_TTL, Reason, Request, Timestamp,
};
use crate::usage::UsageBook;

mod ending;
mod pool;
mod reading;
mod recovery;
mod revoking;

use ending::EndedTrace;
pub use pool::{MAX_TRACES_TOLD, PoolReading, PoolUse};
pub use reading::{Holder, PoolCount};
pub use recovery::RESUME_SPREAD;
pub use revoking::RevocationWalk;

/// Most records that one operation handles: whoever keeps the ledger behind a lock holds up nobody
/// for longer than that takes.
pub const RECORDS_PER_HOLD: usize = 1_024;

/// What a ledger is made with.
#[derive(Clone, Copy)]
pub struct Config {
    /// Most leases at once, whatever the policy allows.
    pub max_leases: u64,
    /// Where the secrets of keys and the order of hash tables come from. A server fills it from
    /// the operating system; the same seed gives the same ledger.
    pub seed: [u8; 32],
    /// Whether changes are collected for [`Ledger::drain_changes`].
    pub journal: bool,
    /// Most records that one operation takes out of the table or reads; never more than
    /// [`RECORDS_PER_HOLD`].
    pub records_per_hold: usize,
}

impl Default for Config {
    /// Room for 2,000,000 leases, a seed of zeros, no journal.
    fn default() -> Self {
        Self {
            max_leases: 2_000_000,
            seed: [0; 32],
            journal: false,
            records_per_hold: RECORDS_PER_HOLD,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { max_leases, seed: _, journal, records_per_hold } = self;
        f.debug_struct("Config")
            .field("max_leases", max_leases)
            .field("journal", journal)
            .field("records_per_hold", records_per_hold)
            .finish_non_exhaustive()
    }
}

/// Every lease of a server and every rule about them.
///
/// Operations are total and deterministic. What has ended by `now` counts as ended for every answer,
/// so none depends on a background task; a `now` before one already told counts as that one. A
/// refused operation changes nothing, but that it may take out what has ended.
///
/// What has ended is taken out of the table in parts, so that no operation takes long: until then it
/// still fills its scopes. See [`Ledger::expire`] and [`Ledger::has_backlog`].
///
/// See the [crate] for an example.
#[derive(Debug)]
pub struct Ledger {
    table: Table,
    timer: Timer,
    now: Timestamp,
    next_serial: NonZeroU64,
    max_leases: u64,
    secrets: ChaCha8Rng,
    /// What each borrow id bought: by indexer and id.
    borrows: Memory<(u32, BorrowId), Bought>,
    /// Why leases were revoked: by serial number.
    revoked: Memory<u64, Revocation>,
    usage: UsageBook,
    changes: Option<Vec<Change>>,
    /// How many changes there were, collected or not.
    revision: u64,
    ends: Ends,
    /// Traces that have ended and still have leases in the table, the first that ended first.
    ended: VecDeque<EndedTrace>,
    records_per_hold: usize,
    /// When an operation last took out what has ended.
    begun: Timestamp,
    /// Whether what has ended stays in the table for now.
    paused: bool,
    /// Sessions that may still be looked at, at this point of time, to find out whether a worker
    /// has ended with them.
    looks: usize,
}

/// What a borrow id bought.
#[derive(Clone, Copy, Debug)]
enum Bought {
    /// A lease; [`Request::fingerprint`] tells whether a retry asks for the same.
    Lease { id: LeaseId, fingerprint: u64 },
    /// Nothing, and nothing any more: it was returned before it arrived.
    Nothing,
}

#[derive(Debug)]
struct Revocation {
    id: LeaseId,
    indexer: Option<Box<str>>,
    reason: Reason,
}

impl Ledger {
    /// An empty ledger at [`Timestamp::ZERO`].
    pub fn new(config: Config) -> Self {
        let Config { max_leases, seed, journal, records_per_hold } = config;
        let mut secrets = ChaCha8Rng::from_seed(seed);
        let hasher = &FixedState::with_seed(secrets.next_u64());
        let memories = usize::try_from(max_leases.max(1024)).unwrap_or(usize::MAX);
        Self {
            table: Table::new(hasher),
            timer: Timer::new(),
            now: Timestamp::ZERO,
            next_serial: NonZeroU64::MIN,
            max_leases,
            secrets,
            borrows: Memory::new(memories.saturating_mul(2), hasher),
            revoked: Memory::new(memories, hasher),
            usage: UsageBook::new(hasher),
            changes: journal.then(Vec::new),
            revision: 0,
            ends: Ends::default(),
            ended: VecDeque::new(),
            records_per_hold: records_per_hold.clamp(1, RECORDS_PER_HOLD),
            begun: Timestamp::ZERO,
            paused: false,
            looks: RECORDS_PER_HOLD / 2,
        }
    }

    /// Grants one lease, or says what stands against it. The request must be valid.
    ///
    /// Within one TTL a retry under the same borrow id gets the same live lease, with its full TTL
    /// again. All ceilings are looked at before anything changes.
    ///
    /// # Errors
    ///
    /// The first [`Refusal`] that applies, in the order: borrow id, budgets, the ceilings in the
    /// order of [`Scope::ALL`], the ledger's own ceiling. [`Refusal::Behind`] when too much of the
    /// trace has ended and is not taken out yet.
    pub fn borrow(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        self.begin(now);
        let indexer = self.table.indexer(request.indexer);
        if let Some(replayed) = self.replay(request, terms, indexer)? {
            return Ok(replayed);
        }
        let mut place = self.find_place(request, indexer)?;
        let observed = match self.admit(request, terms, place) {
            Err(refusal) if terms.observe => Some(Box::new(refusal)),
            admitted => admitted.map(|()| None)?,
        };
        if self.table.leases.len() as u64 >= self.max_leases {
            return Err(Refusal::Full { max_leases: self.max_leases });
        }
        let (id, ttl) = self.grant(request, terms, indexer, &mut place);
        let pool = self.table.pool_state(place, terms.limits.organization);
        Ok(Grant { id, ttl, pool, replayed: false, observed })
    }

    /// Where the scopes of a borrow stand. Nothing joins a trace that has ended.
    fn find_place(&mut self, request: &Request<'_>, indexer: u32) -> Result<Place, Refusal> {
        let place = self.table.place(request, indexer);
        if place.traces_looked_at() > RECORDS_PER_HOLD / 2 {
            return Err(Refusal::Behind);
        }
        if !self.timer.is_behind(self.now) {
            return Ok(place);
        }
        match self.table.sessions_of(place.trace(), self.now, &mut self.looks) {
            Sessions::Live => Ok(place),
            Sessions::Unknown => Err(Refusal::Behind),
            Sessions::Ended => {
                self.end_trace(place.trace());
                self.journal_ended_traces();
                Ok(self.table.place(request, indexer))
            }
        }
    }

    /// Looks for what stands against a borrow, without changing anything.
    fn admit(&self, request: &Request<'_>, terms: &Terms<'_>, place: Place) -> Result<(), Refusal> {
        if let Some(spent) = self.spent(request.organization, terms.budgets, terms.wall) {
            return Err(Refusal::BudgetSpent(spent));
        }
        let counts = self.table.counts(place);
        // What forms no scope has no ceiling.
        let api_key = terms.limits.api_key.filter(|_| !request.api_key.is_empty());
        let workers = (request.kind() == Kind::Worker && forms_a_scope(request.trace))
            .then(|| request.max_workers.unsigned_abs());
        for scope in Scope::ALL {
            let (active, ceiling) = match scope {
                Scope::Service => (counts.service, terms.limits.service),
                Scope::Organization => (counts.organization, terms.limits.organization),
                Scope::ApiKey => (counts.api_key, api_key),
                Scope::Trace => (counts.trace_workers, workers),
            };
            if let Some(max) = ceiling.filter(|&max| active >= max) {
                let pool = self.table.pool_state(place, terms.limits.organization);
                return Err(Refusal::Denied(Denied { scope, active, max, pool }));
            }
        }
        Ok(())
    }

    fn grant(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        indexer: u32,
        place: &mut Place,
    ) -> (LeaseId, Duration) {
        let serial = self.next_serial;
        // 2^64 grants take longer than the hardware lasts.
        self.next_serial = serial.saturating_add(1);
        let mut secret = [0; 12];
        self.secrets.fill_bytes(&mut secret);
        let ttl = Duration::from_millis(whole_milliseconds(terms.ttl.min(MAX_TTL)).into());
        let ends_at = self.now + ttl;
        let (kind, granted_at) = (request.kind(), self.now);
        let new = NewLease { serial, secret, kind, granted_at, ends_at, ttl };
        let slot = self
            .table
            .insert(new, request, indexer, place, None)
            .expect("an unnamed slot is never taken");
        self.timer.set(slot, ends_at);
        let id = LeaseId::new(slot, serial.get(), secret);
        if let Some(borrow_id) = request.borrow_id {
            let bought = Bought::Lease { id, fingerprint: request.fingerprint() };
            self.borrows.insert((indexer, borrow_id), bought, ends_at);
        }
        self.revision += 1;
        if self.changes.is_some() {
            let borrowed_as =
                request.borrow_id.map(|id| BorrowedAs { id, fingerprint: request.fingerprint() });
            let lease = Lease { borrowed_as, ..self.lease(slot, &self.table.leases[slot]) };
            self.collect(|| Change::Granted(Box::new(lease)));
        }
        (id, ttl)
    }

    /// The lease that an earlier try of the same borrow took.
    fn replay(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        indexer: u32,
    ) -> Result<Option<Grant>, Refusal> {
        let Some(borrow_id) = request.borrow_id else { return Ok(None) };
        let (id, known) = match self.borrows.get(&(indexer, borrow_id)) {
            None => return Ok(None),
            Some(Bought::Nothing) => return Err(Refusal::BorrowEnded),
            Some(&Bought::Lease { id, fingerprint }) => (id, fingerprint),
        };
        if known != request.fingerprint() {
            return Err(Refusal::BorrowIdReused);
        }
        self.live(id).filter(|entry| !entry.lingers()).ok_or(Refusal::BorrowEnded)?;
        let now = self.now;
        let entry = self.table.find_mut(id).ok_or(Refusal::BorrowEnded)?;
        entry.ends_at = entry.ends_at.max(now + entry.ttl());
        let ttl = entry.ttl();
        let place = self.table.place(request, indexer);
        let pool = self.table.pool_state(place, terms.limits.organization);
        Ok(Some(Grant { id, ttl, pool, replayed: true, observed: None }))
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
            let Some(entry) = self.live_mut(id).filter(|entry| !entry.lingers()) else {
                return KeptAlive::Failed;
            };
            let ttl = entry.ttl();
            // The end only moves later, so the timer finds it where it looks already. That of a
            // lease that came back from a restart may lie a little later as it is.
            entry.ends_at = entry.ends_at.max(now + ttl);
            return KeptAlive::Extended { ttl };
        }
        match self.revoked.get(&id.serial()) {
            Some(revocation)
                if revocation.id.proves(id.serial, &id.secret)
                    && (revocation.indexer.is_none()
                        || revocation.indexer.as_deref() == caller) =>
            {
                KeptAlive::Revoked(revocation.reason)
            }
            _ => KeptAlive::Failed,
        }
    }

    /// Counts a report of usage, all of it or nothing.
    ///
    /// The same `idempotency_key` from the same `caller` counts once in ten minutes; the answer is
    /// whether it counted now. Spent budgets end nothing by themselves: see [`Ledger::spent`] and
    /// [`Ledger::revoke_organization`].
    ///
    /// # Errors
    ///
    /// [`Invalid`] names the field: an empty or oversized organization, metric or key, a value that
    /// is negative or not finite, too many metrics, more counts than the server keeps.
    pub fn report(
        &mut self,
        caller: Option<&str>,
        idempotency_key: Option<&str>,
        usages: &[Usage<'_>],
        wall: WallTime,
        now: Timestamp,
    ) -> Result<bool, Invalid> {
        self.begin(now);
        for forgotten in self.usage.forget_past(wall) {
            self.record(|| forgotten);
        }
        let changes = self.usage.report(caller, idempotency_key, usages, wall, self.now)?;
        let counted = !changes.is_empty() || idempotency_key.is_none();
        self.revision += changes.len() as u64;
        if let Some(journal) = &mut self.changes {
            journal.extend(changes);
        }
        Ok(counted)
    }

    /// The first budget of `budgets` of which `organization` has nothing left.
    pub fn spent(
        &self,
        organization: &str,
        budgets: &[Budget],
        wall: WallTime,
    ) -> Option<BudgetSpent> {
        self.usage.spent(organization, budgets, wall)
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

    /// The number of leases in the table: the live ones, and what has ended and is not taken out.
    pub fn len(&self) -> usize {
        self.table.leases.len()
    }

    /// Whether there is no lease in the table.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The latest time the ledger was told.
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

    /// Every live lease, in no particular order. Borrow ids are left out: see [`Ledger::snapshot`].
    pub fn leases(&self) -> impl Iterator<Item = Lease> {
        let mut looks = usize::MAX;
        let leases = self.table.leases.iter();
        let live = leases.filter(move |(_, entry)| self.ended_within(entry, &mut looks).is_none());
        live.map(|(slot, entry)| self.lease(slot, entry))
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
        self.audit_ended()
    }
}
