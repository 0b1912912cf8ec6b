//! The state that calls and the threads of the store share: the ledger behind its lock, and the batch
//! that is gathering.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use lease::{Ledger, StoreClock, Timestamp};
use parking_lot::{Condvar, Mutex, MutexGuard};
use policy::Policy;
use tokio::sync::watch;

use crate::answers::Unavailable;
use crate::attached::Attachments;
use crate::batch::Batch;
use crate::clock::Clock;
use crate::commits::Commits;
use crate::desk::Desk;
use crate::fleet::{FleetSecret, Leader};
use crate::journal::Stamp;
use crate::records::{OperatorRecord, OperatorRecords};
use crate::role::Role;
use crate::serving_threads::ServingThreads;

mod committing;
mod granting;
mod keeping_alive;
mod pending;
mod reading;
mod recording;
mod revoking;
mod rewriting;
mod shares;
mod terms;
#[cfg(test)]
mod tests;
mod ticking;

pub use granting::{Borrowed, Delivery};
pub use keeping_alive::Attachment;
use pending::{Disk, Pending};
use shares::Shares;
pub(crate) use terms::Answers;

/// How far store time may run ahead of the journal while there are leases. After a restart the time
/// that a lingering lease has left is known with this precision.
const STAMP_EVERY: Duration = Duration::from_secs(1);

/// The disk is busy while more changes than this wait for it. Then operations do not remove leases
/// that have ended, and mass revocations and large reports wait for the next batch: this work can
/// wait, and a call with a small change should not wait for a large batch.
const BUSY_PENDING: usize = 2_048;

/// While more changes than this wait for the disk, no lease that has ended is removed. Below it the
/// clock thread removes one part at each tick, also while the disk is busy.
const FULL_PENDING: usize = shares::MAX_PENDING / 2;

/// The batch that an answer has to wait for, if any.
pub(crate) type Wait = Option<Arc<Batch>>;

/// The outcome of one part of a long operation.
#[derive(Debug)]
pub(crate) enum Part<R> {
    Done(R),
    /// The disk is busy and nothing was done. Try again when this batch is settled.
    Busy(Arc<Batch>),
}

impl<R> Part<R> {
    pub(crate) fn map<S>(self, done: impl FnOnce(R) -> S) -> Part<S> {
        match self {
            Self::Done(answer) => Part::Done(done(answer)),
            Self::Busy(batch) => Part::Busy(batch),
        }
    }
}

/// The state of a store.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// The overrides and the audit list. This lock is taken before that of `state`.
    pub(crate) records: Mutex<OperatorRecords>,
    revision: AtomicU64,
    pub(crate) clock: Arc<dyn Clock>,
    /// The number of the term that this server leads; none while it stands by.
    pub(crate) terms: watch::Sender<Option<u64>>,
    /// Whether this server leads and serves. Every server without a fleet does.
    pub(crate) leads: AtomicBool,
    /// The leader of the fleet, if it is known.
    pub(crate) leader: watch::Sender<Option<Leader>>,
    /// Set once for a server of a fleet.
    pub(crate) fleet_secret: OnceLock<FleetSecret>,
    pub(crate) desk: Desk,
    pub(crate) commits: Commits,
    /// Whether the threads that serve calls keep up.
    pub(crate) serving_threads: Arc<ServingThreads>,
    /// Wakes the journal thread: there is something to commit, or the store is closing.
    work: Condvar,
    /// Wakes the other threads of the store: the store is closing.
    closing: Condvar,
    /// Wakes the thread that closes the store: one of its threads has ended.
    ended: Condvar,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    time: StoreClock,
    /// Store time of the last probe of the threads that serve calls.
    probed_at: Timestamp,
    journaled: bool,
    /// The part of [`Shared::revision`] that comes from the ledger.
    counted: u64,
    /// The content of the next batch.
    pending: Pending,
    /// How many of these changes each caller has.
    shares: Shares,
    /// The next batch.
    gathering: Arc<Batch>,
    /// The batch that is being flushed.
    committing: Wait,
    /// How long calls have been waiting for the disk.
    disk: Disk,
    /// The store time of the last stamp in the journal.
    stamped: Timestamp,
    /// Why changes are refused until a restart.
    failed: Option<Unavailable>,
    closing: bool,
    /// How many threads of the store run.
    threads: usize,
    /// Set while the ledger runs. If it is set already, an operation panicked and the store is
    /// poisoned.
    applying: bool,
    /// For leases with a borrow id, by serial number: how many answers are not sent yet. A lease is
    /// removed when one of its answers was sent.
    undelivered: HashMap<u64, u32>,
    attachments: Attachments,
    /// The policy in force.
    policy: Policy,
    /// The part of this server in a fleet.
    role: Role,
    /// Whether the database of the fleet has refused the last renewal because it is full.
    is_database_full: bool,
    /// How many batches the journal thread has taken in this term.
    batches: u64,
    /// Set while the database lacks changes that were acknowledged. Nothing is changed or committed.
    rewriting: bool,
    /// Raised when the role changes: threads and operations of an earlier term end.
    term: u64,
}

/// Returns the policy that came into force later.
pub(crate) fn newest<'p>(one: &'p Policy, other: &'p Policy) -> &'p Policy {
    if other.number() > one.number() { other } else { one }
}

impl State {
    /// Checks that changes can be made.
    fn check_writable(&self, clock: &dyn Clock) -> Result<(), Unavailable> {
        if let Some(why) = self.failed {
            return Err(why);
        }
        if self.applying {
            return Err(Unavailable::Failed);
        }
        self.role.check(clock).map_err(|why| match why {
            Unavailable::Lapsed if self.is_database_full => Unavailable::Full,
            why => why,
        })?;
        if self.closing { Err(Unavailable::Closing) } else { Ok(()) }
    }

    /// Checks that the next part of an operation can be made. `begun` is the term of its first part: what
    /// was made in an earlier term may be lost with it.
    fn check_part(&self, begun: Option<u64>, clock: &dyn Clock) -> Result<(), Unavailable> {
        match (begun, self.check_writable(clock)) {
            (Some(term), _) if term != self.term => Err(Unavailable::TermEnded),
            (Some(_), Err(why)) if why.is_for_the_leader() => Err(Unavailable::TermEnded),
            (_, checked) => checked,
        }
    }

    /// Checks that one more change of a caller can be made.
    fn has_room(&self, caller: Option<&str>, clock: &dyn Clock) -> Result<(), Unavailable> {
        self.check_writable(clock)?;
        if self.gathering.is_stalled() {
            return Err(Unavailable::Stalled);
        }
        let has_room = self.shares.has_room(caller, self.pending.len());
        if has_room { Ok(()) } else { Err(Unavailable::Overloaded) }
    }

    /// Adds pending changes to the share of a caller.
    fn charge(&mut self, caller: Option<&str>, changes: usize) {
        if self.journaled && !self.pending.is_empty() {
            self.shares.add(caller, changes);
        }
    }

    /// While the disk is busy, the batch to wait for before work that can wait continues.
    fn batch_if_busy(&self) -> Wait {
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
        records: OperatorRecords,
        journaled: bool,
        stamp: Stamp,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = State {
            counted: ledger.revision(),
            ledger,
            time: StoreClock::starting_at(stamp.time, clock.monotonic()),
            probed_at: stamp.time,
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
            attachments: Attachments::default(),
            policy: Policy::default(),
            role: Role::Alone,
            is_database_full: false,
            batches: 0,
            rewriting: false,
            term: 0,
        };
        Self {
            state: Mutex::new(state),
            records: Mutex::new(records),
            revision: AtomicU64::new(0),
            clock,
            terms: watch::Sender::new(Some(0)),
            leads: AtomicBool::new(true),
            leader: watch::Sender::new(None),
            fleet_secret: OnceLock::new(),
            desk: Desk::default(),
            commits: Commits::default(),
            serving_threads: Arc::default(),
            work: Condvar::new(),
            closing: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    /// Applies one operation to the ledger at the current time.
    fn apply<R>(
        &self,
        state: &mut State,
        operation: impl FnOnce(&mut Ledger, Timestamp) -> R,
    ) -> (R, Wait) {
        self.apply_below(BUSY_PENDING, state, operation)
    }

    /// As [`Shared::apply`]; leases that have ended are removed while at most `most` changes wait.
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
        if !self.serving_threads.has_threads() {
            // No thread reads calls from sockets, so no call waits there.
            state.time.mark_handled(now);
        }
        now
    }

    /// Moves the changes of the ledger into the gathering batch. Returns the batch to wait for so that
    /// every change up to now is durable.
    fn gather(&self, state: &mut State) -> Wait {
        if !state.journaled {
            return None;
        }
        if state.failed.is_some() || state.closing {
            // They are committed no more, and no answer reveals them.
            state.ledger.drain_changes().for_each(drop);
            return None;
        }
        state.pending.changes.extend(state.ledger.drain_changes());
        if state.pending.is_empty() {
            return state.committing.clone();
        }
        state.pending.since.get_or_insert_with(Instant::now);
        if state.committing.is_none() {
            self.work.notify_one();
        }
        Some(state.gathering.clone())
    }

    /// Adds records of operators to the gathering batch, whatever waits there.
    fn gather_records(&self, state: &mut State, new_records: &[OperatorRecord]) -> Wait {
        self.revision.fetch_add(new_records.len() as u64, Ordering::Relaxed);
        if state.journaled {
            state.pending.operator_records.extend_from_slice(new_records);
        }
        self.gather(state)
    }

    /// Puts a policy into force: no borrow is decided under an earlier one, and operations that run
    /// part by part continue under it.
    pub(crate) fn set_policy(&self, policy: &Policy) {
        let mut state = self.state.lock();
        state.ledger.refuse_terms_before(policy.number());
        let newest = newest(policy, &state.policy).clone();
        let before = std::mem::replace(&mut state.policy, newest);
        // Dropping a large policy takes time, so it is done without the lock.
        drop(state);
        drop(before);
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// Applies an operation of a caller that makes or reveals changes.
    pub(crate) fn change<R>(
        &self,
        caller: Option<&str>,
        operation: impl FnOnce(&mut Ledger, Timestamp) -> R,
    ) -> Result<(R, Wait), Unavailable> {
        let mut state = self.state.lock();
        state.has_room(caller, &*self.clock)?;
        let applied = self.apply(&mut state, operation);
        state.charge(caller, 1);
        Ok(applied)
    }

    /// Reads the ledger for an answer that may show changes before they are durable.
    ///
    /// A thread that waits for the lock gets it next. So a series of many reads delays a call by one of
    /// them at most.
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

    /// Refuses changes from now on, and lets the threads of the store finish.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.closing.notify_all();
        self.work.notify_all();
    }
}
