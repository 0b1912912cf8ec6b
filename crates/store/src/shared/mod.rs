//! The ledger behind its lock, and what the store's threads do with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lease::{Ledger, StoreClock, Timestamp};
use parking_lot::{Condvar, Mutex, MutexGuard};
use policy::Policy;

use crate::answers::Unavailable;
use crate::attached::Attached;
use crate::batch::Batch;
use crate::clock::Clock;
use crate::commits::Commits;
use crate::journal::{Operated, Stamp};
use crate::records::Kept;
use crate::turns::Turns;

mod committing;
mod granting;
mod keeping_alive;
mod pending;
mod reading;
mod recording;
mod revoking;
mod shares;
#[cfg(test)]
mod tests;
mod ticking;

use pending::{Disk, Pending};
use shares::Shares;

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

    /// The batch that makes room where too much waits for the disk.
    pub(crate) fn gathering(&self) -> Wait {
        let state = self.state.lock();
        state.journaled.then(|| state.gathering.clone())
    }

    /// The batch to wait for before work in stock goes on, while the disk is busy.
    pub(crate) fn busy(&self) -> Wait {
        self.state.lock().busy()
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
}
