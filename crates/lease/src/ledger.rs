//! The state machine that holds every rule.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

use foldhash::fast::FixedState;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::budget::{Budget, BudgetSpent, WallTime};
use crate::change::{Change, Ends};
use crate::clock::Timestamp;
use crate::id::{BorrowId, LeaseId, validate_id};
use crate::lease::{BorrowedAs, Kind, Lease, MAX_TTL};
use crate::memory::{Bound, Memory};
use crate::records::Record;
use crate::report::{Counted, ReportRefusal, Submission};
use crate::request::Request;
use crate::revocation::{RevokedLease, RevokedTrace};
use crate::scope::{Scope, forms_a_scope};
use crate::slab::{NONE, RECORDS_PER_HOLD};
use crate::table::{ANYBODY, Entry, NewLease, Place, Sessions, Table, whole_milliseconds};
use crate::terms::{Denied, Grant, KeptAlive, MemoryFull, Refusal, Remembers, Terms};
use crate::timer::Timer;
use crate::usage::{UsageBook, UsageBounds};

mod ending;
mod pool;
mod reading;
mod recovery;
mod revoking;

use ending::EndedTrace;
pub use pool::PoolReading;
pub use reading::Holder;
pub use recovery::RESUME_SPREAD;
pub use revoking::RevocationWalk;

/// What a ledger is made with.
#[derive(Clone, Copy)]
pub struct Config {
    /// Most leases at once, whatever the policy allows.
    pub max_leases: u64,
    /// Most bytes that the ids of all leases take up at once.
    pub max_id_bytes: u64,
    /// Most borrow ids remembered of one indexer; where several have some, each may have a fair part
    /// of that. `None` is twice `max_leases`, and 2,048 at least.
    pub max_borrow_ids: Option<u64>,
    /// Most idempotency keys of reports remembered of one indexer.
    pub max_report_keys: u64,
    /// Most counts of usage, of one metric of one organization each; those of budgets always fit.
    pub max_counts: u64,
    /// Most of them that one indexer brings about for organizations that the policy does not know.
    pub max_unknown_counts: u64,
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
    /// Room for 2,000,000 leases with 512 MiB of ids, for 100,000 idempotency keys of each indexer
    /// and 1,000,000 counts, 100,000 of each indexer for organizations that the policy does not
    /// know; a seed of zeros, no journal.
    fn default() -> Self {
        Self {
            max_leases: 2_000_000,
            max_id_bytes: 512 << 20,
            max_borrow_ids: None,
            max_report_keys: 100_000,
            max_counts: 1_000_000,
            max_unknown_counts: 100_000,
            seed: [0; 32],
            journal: false,
            records_per_hold: RECORDS_PER_HOLD,
        }
    }
}

impl Config {
    fn memory_of_leases(&self) -> usize {
        whole(self.max_leases.max(1_024))
    }

    fn memory_of_borrow_ids(&self) -> usize {
        self.max_borrow_ids.map_or(self.memory_of_leases().saturating_mul(2), whole)
    }
}

fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("max_leases", &self.max_leases)
            .field("max_id_bytes", &self.max_id_bytes)
            .field("max_borrow_ids", &self.max_borrow_ids)
            .field("max_report_keys", &self.max_report_keys)
            .field("max_counts", &self.max_counts)
            .field("max_unknown_counts", &self.max_unknown_counts)
            .field("journal", &self.journal)
            .field("records_per_hold", &self.records_per_hold)
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
    max_id_bytes: u64,
    secrets: ChaCha8Rng,
    /// What each borrow id bought.
    borrows: Memory<Bought>,
    /// Why leases were revoked.
    revoked: Memory<RevokedLease>,
    /// The traces of sessions among those. They need no bound of their own: each stands for one
    /// revocation that is remembered as long.
    revoked_traces: Memory<RevokedTrace>,
    usage: UsageBook,
    changes: Option<Vec<Change>>,
    /// How many changes there were, collected or not.
    revision: u64,
    ends: Ends,
    /// The number of the latest policy that was told.
    policy: u64,
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

/// What a borrow id bought. The halves of the id stand apart, because 128 bits in one would take up
/// more room.
#[derive(Clone, Copy, Debug)]
struct Bought {
    id: [u64; 2],
    /// The serial number of the lease; 0, which none has, when there is none any more.
    serial: u64,
    /// The place of the lease.
    slot: u32,
    /// Whether the borrow arrived before it was returned.
    arrived: bool,
    /// [`Request::fingerprint`], if it arrived: whether a retry asks for the same.
    fingerprint: u64,
}

impl Bought {
    /// A borrow id that buys nothing any more.
    fn ended(id: BorrowId, fingerprint: Option<u64>) -> Self {
        Self {
            id: halves(id),
            serial: 0,
            slot: NONE,
            arrived: fingerprint.is_some(),
            fingerprint: fingerprint.unwrap_or(0),
        }
    }

    fn lease(id: BorrowId, lease: LeaseId, fingerprint: u64) -> Self {
        let (serial, slot) = (lease.serial, lease.slot);
        Self { serial, slot, ..Self::ended(id, Some(fingerprint)) }
    }

    const fn borrow_id(&self) -> BorrowId {
        let [high, low] = self.id;
        BorrowId((high as u128) << 64 | low as u128)
    }

    fn fingerprint(&self) -> Option<u64> {
        self.arrived.then_some(self.fingerprint)
    }
}

impl Record for Bought {
    type Key<'a> = [u64; 2];

    fn key(&self) -> [u64; 2] {
        self.id
    }
}

const fn halves(id: BorrowId) -> [u64; 2] {
    [(id.0 >> 64) as u64, id.0 as u64]
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

    /// From now on no borrow is decided on under the terms of a policy with a lower number: whoever
    /// looked them up before the policy changed has to look again.
    pub fn follow(&mut self, policy: u64) {
        self.policy = self.policy.max(policy);
    }

    /// Grants one lease, or says what stands against it. The request must be valid.
    ///
    /// Within one TTL a retry under the same borrow id gets the same live lease, with its full TTL
    /// again. All ceilings are looked at before anything changes.
    ///
    /// # Errors
    ///
    /// The first [`Refusal`] that applies, in the order: old terms, borrow id, budgets, the ceilings in
    /// the order of [`Scope::ALL`], a revoked session, the ledger's own bounds. [`Refusal::Behind`]
    /// when too much of the trace has ended and is not taken out yet.
    pub fn borrow(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        now: Timestamp,
    ) -> Result<Grant, Refusal> {
        if terms.policy < self.policy {
            return Err(Refusal::OldTerms);
        }
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
        self.has_session(request, indexer, place)?;
        self.has_room_for(request, terms, indexer, place)?;
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

    /// Looks for what stands against one more lease, whatever the policy allows.
    fn has_room_for(
        &mut self,
        request: &Request<'_>,
        terms: &Terms<'_>,
        indexer: u32,
        place: Place,
    ) -> Result<(), Refusal> {
        if self.table.leases.len() as u64 >= self.max_leases {
            return Err(Refusal::Full { max_leases: self.max_leases });
        }
        if self.table.id_bytes() >= self.max_id_bytes {
            return Err(Refusal::IdsFull { max_id_bytes: self.max_id_bytes });
        }
        if let Some(unnamed) = terms.unnamed
            && !self.table.has_room_for_unnamed(indexer, place, unnamed)
        {
            return Err(Refusal::TooManyServices { max: unnamed.max });
        }
        // A revocation is never refused, so it has to have room before there is a lease to revoke.
        let room = self.revoked.room(indexer, self.now);
        room.map_err(|most| self.memory_full(Remembers::Revocations, indexer, most))?;
        if request.borrow_id.is_some() {
            let room = self.borrows.room(indexer, self.now);
            room.map_err(|most| self.memory_full(Remembers::BorrowIds, indexer, most))?;
        }
        Ok(())
    }

    fn memory_full(&self, memory: Remembers, indexer: u32, most: u64) -> MemoryFull {
        MemoryFull { memory, indexer: self.table.indexer_name(indexer).map(Into::into), most }
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
        let unnamed = terms.unnamed.is_some();
        let new = NewLease { serial, secret, kind, granted_at, ends_at, ttl, unnamed };
        let slot = self
            .table
            .insert(new, request, indexer, place, None)
            .expect("an unnamed slot is never taken");
        self.timer.set(slot, ends_at);
        let id = LeaseId::new(slot, serial.get(), secret);
        if let Some(borrow_id) = request.borrow_id {
            let bought = Bought::lease(borrow_id, id, request.fingerprint());
            self.table.leases[slot].bought = self.borrows.remember(indexer, bought, ends_at);
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
        let Some(&bought) = self.borrows.get(indexer, halves(borrow_id), self.now) else {
            return Ok(None);
        };
        if bought.fingerprint().is_some_and(|known| known != request.fingerprint()) {
            return Err(Refusal::BorrowIdReused);
        }
        let now = self.now;
        let entry = self.table.leases.get(bought.slot);
        let entry = entry.filter(|entry| entry.serial.get() == bought.serial);
        let id = entry.map(|entry| entry.id(bought.slot)).ok_or(Refusal::BorrowEnded)?;
        self.live(id).filter(|entry| !entry.lingers()).ok_or(Refusal::BorrowEnded)?;
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
        // Those of nobody in particular are told to everybody.
        let indexers = [Some(ANYBODY), self.table.known_indexer(caller)];
        let revoked = indexers.into_iter().flatten().find_map(|indexer| {
            let revocation = self.revoked.get(indexer, id.serial, now)?;
            Some(revocation).filter(|revoked| revoked.id.proves(id.serial, &id.secret))
        });
        revoked.map_or(KeptAlive::Failed, |revoked| KeptAlive::Revoked(revoked.why.clone()))
    }

    /// Counts the next amounts of a report of usage, at most [`RECORDS_PER_HOLD`] of them.
    ///
    /// `from` is where to go on: 0 first, then [`Counted::next`] of the call before, until that is
    /// past the last amount. Under an idempotency key it is not looked at: the ledger knows how far
    /// a report of `caller` with that key has come in the last ten minutes, through restarts too, so
    /// that each of its amounts counts once. Under another report the key is refused.
    ///
    /// An amount that has no room is skipped, and all others count. Spent budgets end nothing by
    /// themselves: see [`Counted::spent`] and [`Ledger::revoke_organization`].
    ///
    /// # Errors
    ///
    /// The key is empty or too long, or names another report, or the caller has as many keys
    /// remembered as it may have. Nothing is counted then.
    pub fn report(
        &mut self,
        submission: &Submission<'_>,
        from: usize,
        now: Timestamp,
    ) -> Result<Counted, ReportRefusal> {
        self.begin(now);
        for forgotten in self.usage.forget_past(submission.wall) {
            self.record(|| forgotten);
        }
        if let Some(key) = submission.idempotency_key {
            validate_id("x-idempotency-key", key, true)?;
        }
        let indexer = self.table.indexer(submission.caller);
        let from = match submission.idempotency_key {
            Some(key) => match self.usage.resume(indexer, key, submission.report, self.now) {
                Ok(from) => from,
                Err(most) => {
                    let most = most.ok_or(ReportRefusal::KeyReused)?;
                    return Err(self.memory_full(Remembers::IdempotencyKeys, indexer, most).into());
                }
            },
            None => from,
        };
        let Self { usage, table, .. } = self;
        let holds_leases = |organization: &str| table.holds_leases(organization);
        let mut changes = Vec::new();
        let counted = usage.count(submission, indexer, from, &holds_leases, &mut changes);
        if let Some(key) = submission.idempotency_key
            && !counted.repeated
            && !submission.report.is_empty()
        {
            let indexer_name = submission.caller.map(Into::into);
            let report = (key, submission.report.fingerprint(), counted.next);
            changes.push(usage.reported(indexer, indexer_name, report, self.now));
        }
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
        self.audit_revoked()?;
        self.audit_ended()
    }
}
