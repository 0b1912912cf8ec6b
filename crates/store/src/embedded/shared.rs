//! The ledger behind its lock, and what the store's threads do with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lease::{
    BorrowId, Grant, KeptAlive, LeaseId, LeaseNumber, Ledger, Reason, Refusal, Reporting, Request,
    RevokedFor, StoreClock, Terms, Timestamp,
};
use parking_lot::{Condvar, Mutex, MutexGuard};
use policy::Policy;
use policy::overrides::AuditEntry;

use super::kept::Kept;
use crate::answers::ReportError;
use crate::answers::{KeptBatch, Unavailable};
use crate::attached::{Attached, Attachment, Detach, Listener, Push};
use crate::clock::Clock;
use crate::commit::Batch;
use crate::commits::Commits;
use crate::delivery::{Delivery, TakeBack};
use crate::journal::Operated;
use crate::journal::Stamp;
use crate::turns::Turns;

mod committing;
mod pending;
mod shares;
#[cfg(test)]
mod tests;

use pending::{Disk, Pending};
use shares::Shares;

/// How often the clock is read and leases expire when nobody calls.
const TICK: Duration = Duration::from_millis(50);

/// How often to look whether a busy disk has taken what waits, while there is more to take out.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How far store time may run ahead of the journal while there are leases: this well is known,
/// after a restart, what a lingering lease has left.
const STAMP_EVERY: Duration = Duration::from_secs(1);

/// While more changes than that wait for the disk, operations take nothing out that has ended, and
/// mass revocations and large reports wait for the next batch: all of that is work in stock, and
/// whoever waits for a small change is not to wait for a large batch.
const BUSY_PENDING: usize = 2_048;

/// While more changes than that wait for the disk, nothing that has ended is taken out at all. Below
/// it the clock takes out one part at each of its ticks, however busy the disk is.
const FULL_PENDING: usize = shares::MAX_PENDING / 2;

/// The batch that an answer has to wait for, if any.
pub(crate) type Wait = Option<Arc<Batch>>;

/// The leases that one operation revoked.
pub(crate) type Revoked = Vec<(LeaseId, RevokedFor)>;

/// What came of one part of a long operation.
#[derive(Debug)]
pub(crate) enum Part<R> {
    Done(R),
    /// Nothing was done: the part comes when this batch is durable.
    Busy(Arc<Batch>),
}

#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// What operators set and did. Its lock is taken before that of the state.
    pub(crate) kept: Mutex<Kept>,
    revision: AtomicU64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) commits: Commits,
    /// Whether the threads that serve calls keep up.
    pub(crate) turns: Arc<Turns>,
    /// Wakes the journal: there is something to commit, or nothing ever again.
    work: Condvar,
    /// Wakes the clock: the store is closing.
    closing: Condvar,
    /// Wakes whoever closes the store: one of its threads has ended.
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    time: StoreClock,
    /// When the threads that serve calls were last asked whether they keep up.
    asked_at: Timestamp,
    journaled: bool,
    /// The revision of the ledger that [`Shared::revision`] counts in already.
    counted: u64,
    /// What the next batch holds.
    pending: Pending,
    /// Whose changes those are.
    shares: Shares,
    /// The next batch.
    gathering: Arc<Batch>,
    /// The batch that is being flushed.
    committing: Wait,
    /// How long the disk has been taking.
    disk: Disk,
    /// The store time that the journal knows.
    stamped: Timestamp,
    /// Why changes are refused until a restart.
    failed: Option<Unavailable>,
    closing: bool,
    /// How many threads of the store run.
    threads: usize,
    /// Set while the ledger is at work. Found set, that work panicked: nobody knows what holds.
    applying: bool,
    /// For leases with a borrow id, by serial number: how many answers are on their way, as long
    /// as none got away.
    undelivered: HashMap<u64, u32>,
    attached: Attached,
    /// The policy in force, as far as the store was told.
    policy: Policy,
}

/// The one of two policies that came into force later.
pub(crate) fn newest<'p>(one: &'p Policy, other: &'p Policy) -> &'p Policy {
    if other.number() > one.number() { other } else { one }
}

impl State {
    /// Whether changes can be made.
    fn sound(&self) -> Result<(), Unavailable> {
        if let Some(why) = self.failed {
            Err(why)
        } else if self.applying {
            Err(Unavailable::Failed)
        } else if self.closing {
            Err(Unavailable::Closing)
        } else {
            Ok(())
        }
    }

    /// Whether one more change of a caller can be made.
    fn has_room(&self, caller: Option<&str>) -> Result<(), Unavailable> {
        self.sound()?;
        if self.gathering.is_stalled() {
            return Err(Unavailable::Stalled);
        }
        let has_room = self.shares.has_room(caller, self.pending.len());
        if has_room { Ok(()) } else { Err(Unavailable::Overloaded) }
    }

    /// Counts changes of a caller among what waits.
    fn charge(&mut self, caller: Option<&str>, changes: usize) {
        if self.journaled && !self.pending.is_empty() {
            self.shares.add(caller, changes);
        }
    }

    /// Moves what changed into the gathering batch, and answers what to wait for so that every
    /// change up to now is durable.
    fn gather(&mut self) -> Wait {
        if !self.journaled {
            return None;
        }
        if self.failed.is_some() || self.closing {
            // Nobody commits these any more, and no answer reveals them.
            self.ledger.drain_changes().for_each(drop);
            return None;
        }
        self.pending.changes.extend(self.ledger.drain_changes());
        if self.pending.is_empty() {
            return self.committing.clone();
        }
        self.pending.since.get_or_insert_with(Instant::now);
        Some(self.gathering.clone())
    }

    /// The batch to wait for before work in stock goes on, while the disk is busy.
    fn busy(&self) -> Wait {
        let batch = self.committing.as_ref().unwrap_or(&self.gathering);
        (self.pending.len() > BUSY_PENDING).then(|| batch.clone())
    }

    fn stamp_is_due(&self) -> bool {
        self.journaled
            && self.failed.is_none()
            && !self.ledger.is_empty()
            && self.ledger.now().since(self.stamped) >= STAMP_EVERY
    }

    fn stamp(&self) -> Stamp {
        Stamp { time: self.ledger.now(), next_serial: self.ledger.next_serial() }
    }
}

impl Shared {
    pub(crate) fn new(
        ledger: Ledger,
        kept: Kept,
        journaled: bool,
        stamp: Stamp,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = State {
            counted: ledger.revision(),
            ledger,
            time: StoreClock::starting_at(stamp.time, clock.monotonic()),
            asked_at: stamp.time,
            journaled,
            pending: Pending::default(),
            shares: Shares::default(),
            gathering: Arc::default(),
            committing: None,
            disk: Disk::default(),
            stamped: stamp.time,
            failed: None,
            closing: false,
            threads: 0,
            applying: false,
            undelivered: HashMap::new(),
            attached: Attached::default(),
            policy: Policy::default(),
        };
        Self {
            state: Mutex::new(state),
            kept: Mutex::new(kept),
            revision: AtomicU64::new(0),
            clock,
            commits: Commits::default(),
            turns: Arc::default(),
            work: Condvar::new(),
            closing: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    /// Applies one operation to the ledger, at the present.
    fn apply<R>(
        &self,
        state: &mut State,
        operation: impl FnOnce(&mut Ledger, Timestamp) -> R,
    ) -> (R, Wait) {
        self.apply_below(BUSY_PENDING, state, operation)
    }

    /// As [`Shared::apply`]; what has ended is taken out while at most `most` changes wait.
    fn apply_below<R>(
        &self,
        most: usize,
        state: &mut State,
        operation: impl FnOnce(&mut Ledger, Timestamp) -> R,
    ) -> (R, Wait) {
        let now = self.now(state);
        state.ledger.pause_expiry(state.pending.len() > most);
        state.applying = true;
        let answer = operation(&mut state.ledger, now);
        state.applying = false;
        let revision = state.ledger.revision();
        if revision != state.counted {
            self.revision.fetch_add(revision - state.counted, Ordering::Relaxed);
            state.counted = revision;
        }
        (answer, self.gather(state))
    }

    fn now(&self, state: &mut State) -> Timestamp {
        let now = state.time.read(self.clock.monotonic());
        if !self.turns.has_threads() {
            // Nobody serves calls from sockets: whoever calls was heard.
            state.time.heard(now);
        }
        now
    }

    fn gather(&self, state: &mut State) -> Wait {
        let wait = state.gather();
        if wait.is_some() && state.committing.is_none() {
            self.work.notify_one();
        }
        wait
    }

    /// Puts what an operator did into the gathering batch, however much waits there.
    pub(crate) fn keep(&self, operated: &[Operated]) -> Result<Wait, Unavailable> {
        let mut state = self.state.lock();
        state.sound()?;
        Ok(self.keep_locked(&mut state, operated))
    }

    fn keep_locked(&self, state: &mut State, operated: &[Operated]) -> Wait {
        self.revision.fetch_add(operated.len() as u64, Ordering::Relaxed);
        if state.journaled {
            state.pending.operated.extend_from_slice(operated);
        }
        self.gather(state)
    }

    /// Takes in the policy that is in force from now on: no borrow is decided on under one before it,
    /// and what goes on in parts goes on under it.
    pub(crate) fn follow(&self, policy: &Policy) {
        let mut state = self.state.lock();
        state.ledger.follow(policy.number());
        let newest = newest(policy, &state.policy).clone();
        let before = std::mem::replace(&mut state.policy, newest);
        // A large one takes a while to be let go of.
        drop(state);
        drop(before);
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Applies an operation of a caller that changes something or tells of changes.
    pub(crate) fn change<R>(
        &self,
        caller: Option<&str>,
        operation: impl FnOnce(&mut Ledger, Timestamp) -> R,
    ) -> Result<(R, Wait), Unavailable> {
        let mut state = self.state.lock();
        state.has_room(caller)?;
        let applied = self.apply(&mut state, operation);
        state.charge(caller, 1);
        Ok(applied)
    }

    /// Does the next part of a report of usage, under the later of `policy` and the policy in force.
    ///
    /// Counting needs room for its changes. Ending leases waits for no room, and for the disk while that
    /// is busy. Reading needs neither. Who waits for the lock meanwhile gets it before the next part.
    pub(crate) fn report_part(
        &self,
        policy: &Policy,
        reporting: &mut Reporting,
    ) -> Result<Part<Wait>, ReportError> {
        let (wall, amounts) = (self.clock.wall(), reporting.amounts());
        let mut state = self.state.lock();
        if amounts > 0 {
            state.has_room(reporting.submission().caller.as_deref())?;
        } else {
            state.sound()?;
        }
        if reporting.ends_leases()
            && let Some(batch) = state.busy()
        {
            return Ok(Part::Busy(batch));
        }
        let policy = newest(policy, &state.policy).clone();
        let (ended, wait) =
            self.apply(&mut state, |ledger, now| ledger.report(&policy, wall, reporting, now));
        state.charge(reporting.submission().caller.as_deref(), amounts);
        self.tell(state, ended?);
        Ok(Part::Done(wait))
    }

    /// The batch that makes room where too much waits for the disk.
    pub(crate) fn gathering(&self) -> Wait {
        let state = self.state.lock();
        state.journaled.then(|| state.gathering.clone())
    }

    /// The batch to wait for before work in stock goes on, while the disk is busy.
    pub(crate) fn busy(&self) -> Wait {
        self.state.lock().busy()
    }

    /// Grants a lease, and promises that it is taken back if its answer is lost.
    #[expect(clippy::type_complexity, reason = "an answer, and what it waits for")]
    pub(crate) fn grant(
        self: &Arc<Self>,
        request: &Request<'_>,
        terms: &Terms<'_>,
    ) -> Result<(Result<(Grant, Delivery), Refusal>, Wait), Unavailable> {
        let mut state = self.state.lock();
        state.has_room(request.indexer)?;
        let (outcome, mut wait) =
            self.apply(&mut state, |ledger, now| ledger.borrow(request, terms, now));
        if outcome == Err(Refusal::OldTerms) {
            // It is decided on again at once, and tells nothing of what the disk does.
            wait = None;
        }
        if outcome.is_ok() {
            state.charge(request.indexer, 1);
        }
        let outcome = outcome.map(|grant| {
            let delivery = match (request.borrow_id, grant.replayed) {
                (None, _) => true,
                (Some(_), false) => state.undelivered.insert(grant.id.serial(), 1).is_none(),
                (Some(_), true) => match state.undelivered.get_mut(&grant.id.serial()) {
                    Some(answers) => {
                        *answers += 1;
                        true
                    }
                    None => false,
                },
            };
            let delivery = if delivery {
                Delivery::pending(self.clone(), grant.id, request.borrow_id)
            } else {
                Delivery::done()
            };
            (grant, delivery)
        });
        Ok((outcome, wait))
    }

    /// Keeps a lease alive. An extended TTL is told whatever the disk does.
    pub(crate) fn keep_alive(
        &self,
        id: LeaseId,
        caller: Option<&str>,
    ) -> Result<(KeptAlive, Wait), Unavailable> {
        let mut state = self.state.lock();
        if state.applying {
            return Err(Unavailable::Failed);
        }
        match self.apply(&mut state, |ledger, now| ledger.keep_alive(id, caller, now)) {
            (extended @ KeptAlive::Extended { .. }, _) => Ok((extended, None)),
            // What ended may not be known to the disk: the caller had better ask again.
            ended => state.sound().map(|()| ended),
        }
    }

    /// Keeps the leases of a batch alive under one lock; the listener called `number` names those
    /// that it extends.
    pub(crate) fn keep_alive_batch(
        &self,
        ids: &[Option<LeaseId>],
        caller: Option<&str>,
        number: u64,
    ) -> (KeptBatch, Wait) {
        let mut kept = KeptBatch::default();
        let mut state = self.state.lock();
        if state.applying {
            kept.failed = (0..).take(ids.len()).collect();
            return (kept.unsure(), None);
        }
        // Taken out of the state while the ledger in it is at work.
        let mut attached = std::mem::take(&mut state.attached);
        let ((), wait) = self.apply(&mut state, |ledger, now| {
            for (place, id) in (0..).zip(ids) {
                let Some(id) = *id else {
                    kept.failed.push(place);
                    continue;
                };
                match ledger.keep_alive(id, caller, now) {
                    KeptAlive::Extended { .. } => attached.name(id, number),
                    KeptAlive::Failed => kept.failed.push(place),
                    KeptAlive::Revoked(why) => kept.revoked.push((place, why)),
                }
            }
        });
        state.attached = attached;
        if kept.listed() == 0 {
            return (kept, None);
        }
        // What ended may not be known to the disk: the caller had better ask again.
        if state.sound().is_ok() { (kept, wait) } else { (kept.unsure(), None) }
    }

    /// Applies an operation that ends leases for a reason, and sees to it that whoever named them
    /// is told once that is durable. The operation adds what it revoked to its last argument. It is
    /// the operator's, or what a policy demands, and waits for no room.
    pub(crate) fn revoke<R>(
        &self,
        operation: impl FnOnce(&mut Ledger, Timestamp, &mut Revoked) -> R,
    ) -> Result<(R, Wait), Unavailable> {
        let mut revoked = Revoked::new();
        let mut state = self.state.lock();
        state.sound()?;
        let (answer, wait) =
            self.apply(&mut state, |ledger, now| operation(ledger, now, &mut revoked));
        self.tell(state, revoked);
        Ok((answer, wait))
    }

    /// As [`Shared::revoke`], for one part of an operation that has many, unless the disk is busy.
    /// Answers how many leases the part revoked.
    ///
    /// The operation is told the policy in force, and answers what it revoked. The audit entry of that
    /// number, if there is one, counts that from the moment at which it is durable.
    pub(crate) fn revoke_part(
        &self,
        entry: Option<u64>,
        operation: impl FnOnce(&mut Ledger, Timestamp, &Policy) -> Revoked,
    ) -> Result<Part<(usize, Wait)>, Unavailable> {
        let mut kept = entry.map(|number| (number, self.kept.lock()));
        let mut state = self.state.lock();
        state.sound()?;
        if let Some(batch) = state.busy() {
            return Ok(Part::Busy(batch));
        }
        let policy = state.policy.clone();
        let (revoked, mut wait) =
            self.apply(&mut state, |ledger, now| operation(ledger, now, &policy));
        let count = revoked.len();
        if let Some((number, kept)) = &mut kept
            && let Some(operated) = kept.ended_more(*number, count)
        {
            wait = self.keep_locked(&mut state, std::slice::from_ref(&operated));
            kept.apply(operated);
        }
        self.tell(state, revoked);
        Ok(Part::Done((count, wait)))
    }

    /// Ends the lease of that number, and writes down in the same batch that an operator did it, and
    /// how many leases ended. Answers the entry; `None`, and nothing is written down, when there is
    /// no such lease.
    pub(crate) fn revoke_number(
        &self,
        number: LeaseNumber,
        reason: Reason,
        entry: AuditEntry,
    ) -> Result<(Option<AuditEntry>, Wait), Unavailable> {
        let mut kept = self.kept.lock();
        let mut state = self.state.lock();
        state.sound()?;
        let (revoked, wait) =
            self.apply(&mut state, |ledger, now| ledger.revoke_number(number, reason, now));
        let Some((id, ended)) = revoked else { return Ok((None, wait)) };
        let entry = AuditEntry { number: kept.next_number(), ended, ..entry };
        let operated = Operated::Audit(entry.clone());
        let wait = self.keep_locked(&mut state, std::slice::from_ref(&operated));
        kept.apply(operated);
        drop(kept);
        self.tell(state, vec![(id, reason.into())]);
        Ok((Some(entry), wait))
    }

    /// Sees to it that whoever named revoked leases is told, and lets go of the lock, to those first
    /// who wait for it.
    fn tell(&self, mut state: MutexGuard<'_, State>, revoked: Revoked) {
        let pushes: Vec<Push> = revoked
            .into_iter()
            .filter_map(|(id, why)| Some(Push { listener: state.attached.listener(id)?, id, why }))
            .collect();
        if state.journaled {
            // Their changes are in the gathering batch.
            state.pending.pushes.extend(pushes);
            MutexGuard::unlock_fair(state);
        } else {
            MutexGuard::unlock_fair(state);
            pushes.into_iter().for_each(Push::deliver);
        }
    }

    /// Takes a listener in.
    pub(crate) fn attach(self: &Arc<Self>, listener: Arc<dyn Listener>) -> Attachment {
        let number = self.state.lock().attached.attach(listener);
        Attachment::new(self.clone(), number)
    }

    /// Reads something that no answer on the wire depends on.
    ///
    /// Who waits for the lock meanwhile gets it next, so that a walk of many reads holds up nobody
    /// for longer than one of them takes.
    pub(crate) fn read<R>(&self, at: impl FnOnce(&Ledger) -> R) -> Result<R, Unavailable> {
        let state = self.state.lock();
        if state.applying {
            return Err(Unavailable::Failed);
        }
        let answer = at(&state.ledger);
        MutexGuard::unlock_fair(state);
        Ok(answer)
    }

    /// Why changes are refused until a restart, if they are.
    pub(crate) fn failure(&self) -> Option<Unavailable> {
        let state = self.state.lock();
        state.failed.or(state.applying.then_some(Unavailable::Failed))
    }

    /// Refuses what comes from now on, and lets the threads finish.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.closing.notify_all();
        self.work.notify_all();
    }

    /// Reads the clock and takes out what has ended, over and over until the store closes.
    pub(crate) fn keep_time(&self) {
        let mut state = self.state.lock();
        while !state.closing {
            self.tick_locked(&mut state);
            if state.ledger.has_backlog() && !state.applying {
                // The next part comes as soon as the disk has taken what waits, and a tick later at
                // the latest.
                for _ in 0..TICK.as_millis() / LOOK_AGAIN.as_millis() {
                    if state.pending.len() <= BUSY_PENDING || state.closing {
                        break;
                    }
                    self.closing.wait_for(&mut state, LOOK_AGAIN);
                }
                // Whoever waits for the lock gets it first.
                MutexGuard::bump(&mut state);
            } else {
                self.closing.wait_for(&mut state, TICK);
            }
        }
    }

    pub(crate) fn tick(&self) {
        self.tick_locked(&mut self.state.lock());
    }

    /// Says that whatever arrived until now was heard, and ticks until nothing that has ended is left.
    pub(crate) fn tick_heard(&self) {
        let mut state = self.state.lock();
        loop {
            let now = self.now(&mut state);
            state.time.heard(now);
            self.tick_locked(&mut state);
            if !state.ledger.has_backlog() || state.pending.len() > BUSY_PENDING || state.applying {
                return;
            }
            MutexGuard::bump(&mut state);
        }
    }

    fn tick_locked(&self, state: &mut State) {
        self.look_at_disk(state);
        if state.applying {
            return;
        }
        let now = self.now(state);
        if self.turns.all_answered() {
            state.time.heard(state.asked_at);
            state.asked_at = now;
        }
        self.apply_below(FULL_PENDING, state, |ledger, now| ledger.expire(now));
        if state.stamp_is_due() {
            self.work.notify_one();
        }
    }
}

impl Detach for Shared {
    fn detach(&self, number: u64) {
        self.state.lock().attached.detach(number);
    }
}

impl TakeBack for Shared {
    fn delivered(&self, id: LeaseId, borrow_id: Option<BorrowId>) {
        if borrow_id.is_some() {
            self.state.lock().undelivered.remove(&id.serial());
        }
    }

    fn take_back(&self, id: LeaseId, borrow_id: Option<BorrowId>) {
        let mut state = self.state.lock();
        if borrow_id.is_some() {
            match state.undelivered.get_mut(&id.serial()) {
                None => return, // an answer of another try got away
                Some(1) => {
                    state.undelivered.remove(&id.serial());
                }
                Some(answers) => {
                    *answers -= 1;
                    return;
                }
            }
        }
        if state.sound().is_ok() {
            self.apply(&mut state, |ledger, now| ledger.undo(id, borrow_id, now));
        }
    }
}
