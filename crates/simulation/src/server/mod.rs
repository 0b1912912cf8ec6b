//! One server: its ledger behind the glue that the store has around it.
//!
//! `leading.rs` is the thread of the leadership, `committing.rs` the thread of the journal,
//! `applying.rs` the operations of the store, and `forwarding.rs` what a standby does with calls.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use foldhash::fast::FixedState;
use lease::{Change, End, LeaseId, Ledger, StoreClock, Timestamp};
use rand::RngExt as _;
use rand_chacha::rand_core::Rng as _;
use store::fleet::{Config, Fence, JournalRow, LeaderId, Leadership, MemberId};

use crate::clock::{Clock, MILLISECOND};
use crate::event::Event;
use crate::message::Stamp;
use crate::sim::{SERVERS, Sim};
use crate::truth::Reader;

mod applying;
mod batch;
mod committing;
mod forwarding;
mod leading;
mod passing;
mod watched;

use batch::{Batch, Journal, Wait, Waiter};
use passing::{Passing, Received};
use watched::Watched;

/// How often the clock thread of a store ticks. It is more often in a real one.
const TICK: u64 = 100 * MILLISECOND;

/// A standby has nothing to do then.
const STANDBY_TICK: u64 = 400 * MILLISECOND;

/// The longest time between two readings of the clock of a store that counts in full.
const LONGEST_STEP: Duration = Duration::from_millis(500);

/// The part of this server in the fleet, as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Standby,
    Leader { valid_until: Duration, serves: bool },
}

/// The running term of this server as leader.
#[derive(Debug)]
struct Running {
    fence: Fence,
    journal: Journal,
    /// A commit found another row than it expected.
    is_in_doubt: bool,
    valid_until: Duration,
    reader: Reader,
    /// How often the database had lost something when the term began.
    promotions: u64,
}

/// When a lease has to be gone, by the time that the server was active.
#[derive(Clone, Copy, Debug)]
struct Due {
    id: LeaseId,
    at: Duration,
    ttl: Duration,
    lingers: bool,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) index: usize,
    pub(crate) clock: Clock,
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    pub(crate) is_paused: bool,
    /// What arrives while it is paused.
    pub(crate) inbox: Vec<Event>,

    leadership: Leadership,
    /// The number of the request in flight of the leadership.
    election: u64,
    elections: u64,
    /// How often the database had lost something when that was sent.
    promotions: u64,
    /// The last batch that was known to be committed then.
    sequence: u64,
    /// Whether this server was valid when it noticed that.
    may_overwrite: bool,
    /// Whether the last answer shows that the database has lost writes of this leader.
    has_noticed: bool,
    wake: u64,
    watched: Watched,
    running: Option<Running>,
    /// Until when the ledger does not answer.
    stuck_until: Duration,

    ledger: Ledger,
    time: StoreClock,
    role: Role,
    term: u64,
    stamped: Timestamp,
    pending: Vec<Change>,
    gathering: Vec<Waiter>,
    committing: Option<Batch>,
    commit: u64,
    journal_wake: u64,
    undelivered: HashMap<u64, u32, FixedState>,
    /// Forwarded grants, until the standby says what became of them.
    forwarded: BTreeMap<(u64, u64, usize), lease::LeaseId>,
    borrow_ids: HashMap<u64, lease::BorrowId, FixedState>,
    /// Calls whose callers have gone.
    cancelled: Vec<u64>,
    /// The database lacks what was acknowledged: nothing is changed or committed.
    is_rewriting: bool,
    /// It hands over, or stops: it makes no more changes.
    is_draining: bool,
    /// When it goes on, if not everything is committed by then.
    gives_up_draining: Duration,
    /// It stops when it has released the leadership.
    is_stopping: bool,

    /// Calls that it passes on to the leader.
    passing: BTreeMap<u64, Passing>,
    /// Whether it looks for a leader soon.
    is_holding: bool,
    attempts: u64,
    /// The leader that calls were sent to last.
    leader: Option<LeaderId>,
    /// Calls that it has received and not answered, of clients of this server.
    received: BTreeMap<u64, Received>,
    streams: Vec<(usize, u32, u64)>,

    /// How long the server was active: a pause counts as half a second.
    active: Duration,
    read_at: Duration,
    due: BTreeMap<u64, Due>,
}

fn new_ledger(sim: &mut Sim) -> Ledger {
    let mut seed = [0; 32];
    sim.random.fill_bytes(&mut seed);
    Ledger::new(lease::Config { seed, journal: true, max_leases: 64, ..lease::Config::default() })
}

fn new_leadership(sim: &mut Sim, index: usize, now: Duration) -> Leadership {
    sim.members[index] = MemberId(sim.random.random());
    let mut seed = [0; 32];
    sim.random.fill_bytes(&mut seed);
    let leader_ttl = sim.settings.leader_ttl;
    let (address, member) = (index.to_string().into(), sim.members[index]);
    Leadership::new(Config { leader_ttl, address, member, seed }, now)
}

impl Server {
    pub(crate) fn new(sim: &mut Sim, index: usize, clock: Clock) -> Self {
        let now = clock.at(sim.time);
        Self {
            index,
            clock,
            life: 0,
            is_up: true,
            is_paused: false,
            inbox: Vec::new(),
            leadership: new_leadership(sim, index, now),
            election: 0,
            elections: 0,
            promotions: 0,
            sequence: 0,
            may_overwrite: false,
            has_noticed: false,
            wake: 0,
            watched: Watched::default(),
            running: None,
            stuck_until: Duration::ZERO,
            ledger: new_ledger(sim),
            time: StoreClock::starting_at(Timestamp::ZERO, now),
            role: Role::Standby,
            term: 0,
            stamped: Timestamp::ZERO,
            pending: Vec::new(),
            gathering: Vec::new(),
            committing: None,
            commit: 0,
            journal_wake: 0,
            undelivered: HashMap::default(),
            forwarded: BTreeMap::new(),
            borrow_ids: HashMap::default(),
            cancelled: Vec::new(),
            is_rewriting: false,
            is_draining: false,
            gives_up_draining: Duration::ZERO,
            is_stopping: false,
            passing: BTreeMap::new(),
            is_holding: false,
            attempts: 0,
            leader: None,
            received: BTreeMap::new(),
            streams: Vec::new(),
            active: Duration::ZERO,
            read_at: now,
            due: BTreeMap::new(),
        }
    }

    /// The process starts.
    pub(crate) fn start(&mut self, sim: &mut Sim) {
        let (index, clock, life) = (self.index, self.clock, self.life);
        *self = Self { life: life + 1, ..Self::new(sim, index, clock) };
        sim.after(0, Event::Tick { server: index, life: self.life });
        self.lead(sim);
    }

    /// The process is killed: whoever waits for it learns that, mostly.
    pub(crate) fn kill(&mut self, sim: &mut Sim) {
        (self.is_up, self.is_paused) = (false, false);
        self.life += 1;
        self.inbox.clear();
        let mut callers: Vec<_> =
            self.received.values().map(|Received { client, life }| (*client, *life)).collect();
        callers.sort_unstable();
        callers.dedup();
        for (client, life) in callers {
            sim.send(&[], Event::Disconnected { client, life, server: self.index });
        }
        for server in (0..SERVERS).filter(|server| *server != self.index) {
            sim.send(&[], Event::LinkLost { server, peer: self.index });
        }
        for (client, life, stream) in std::mem::take(&mut self.streams) {
            sim.send(&[], Event::Detached { client, life, stream });
        }
    }

    fn now(&self, sim: &Sim) -> Duration {
        self.clock.at(sim.time)
    }

    /// Lets something happen after some time of this server.
    fn after(&self, sim: &mut Sim, time: Duration, event: Event) {
        let at = self.clock.when(self.now(sim) + time);
        sim.at(at, event);
    }

    /// Whether it may act as the leader now.
    pub(crate) fn is_valid_leader(&self, sim: &Sim) -> bool {
        self.is_up && self.leadership.valid_until(self.now(sim)).is_some() && !self.is_ghost(sim)
    }

    /// Whether the database has lost the takeover of its term.
    fn is_ghost(&self, sim: &Sim) -> bool {
        self.leadership.term().is_some_and(|row| sim.truth.is_lost(row.leader))
    }

    /// Whether it serves now.
    pub(crate) fn serves(&self, sim: &Sim) -> bool {
        self.is_up && self.check(self.now(sim))
    }

    /// Checks that the server may act now.
    fn check(&self, now: Duration) -> bool {
        match self.role {
            Role::Leader { valid_until, serves: true } => now < valid_until,
            _ => false,
        }
    }

    fn is_writable(&self, now: Duration) -> bool {
        self.check(now) && !self.is_draining
    }

    /// Store time.
    fn store_time(&mut self, now: Duration) -> Timestamp {
        let step = now.saturating_sub(self.read_at).min(LONGEST_STEP);
        self.active += step;
        self.read_at = self.read_at.max(now);
        let time = self.time.read(now);
        self.time.mark_handled(time);
        time
    }

    /// Applies one operation to the ledger.
    fn apply<R>(
        &mut self,
        sim: &mut Sim,
        operation: impl FnOnce(&mut Ledger, Timestamp) -> R,
    ) -> (R, Wait) {
        let now = self.now(sim);
        let time = self.store_time(now);
        self.ledger.pause_expiry(false);
        let answer = operation(&mut self.ledger, time);
        (answer, self.gather(sim))
    }

    /// Moves the changes of the ledger into the gathering batch.
    fn gather(&mut self, sim: &mut Sim) -> Wait {
        let before = self.pending.len();
        self.pending.extend(self.ledger.drain_changes());
        for place in before..self.pending.len() {
            self.note_due(sim, place);
        }
        if self.pending.is_empty() {
            return if self.committing.is_some() { Wait::Committing } else { Wait::Nothing };
        }
        if self.committing.is_none() {
            self.wake_journal(sim, Duration::ZERO);
        }
        Wait::Gathering
    }

    /// Notes when a lease has to be gone, apart from the ledger.
    fn note_due(&mut self, sim: &mut Sim, place: usize) {
        match &self.pending[place] {
            Change::Granted(lease) => {
                let (id, ttl) = (lease.id, lease.ttl);
                let due = Due { id, at: self.active + ttl, ttl, lingers: false };
                self.due.insert(id.serial(), due);
            }
            Change::Lingers { id, until } => {
                let left = until.since(self.ledger.now());
                if let Some(due) = self.due.get_mut(&id.serial()) {
                    (due.at, due.lingers) = (self.active + left, true);
                }
            }
            Change::Ended { id, end } => {
                let due = self.due.remove(&id.serial());
                let is_early = due.is_some_and(|due| due.at > self.active);
                if is_early && matches!(end, End::Expired | End::Lingered) {
                    let serial = id.serial();
                    sim.truth.violate(|| format!("lease {serial} expired before its end"));
                }
            }
            _ => {}
        }
    }

    /// The lease has its full TTL again.
    fn note_kept_alive(&mut self, id: LeaseId) {
        if let Some(due) = self.due.get_mut(&id.serial()) {
            due.at = self.active + due.ttl;
        }
    }

    /// Every lease gets its full TTL.
    fn extend_all(&mut self, sim: &Sim) {
        let now = self.now(sim);
        let time = self.store_time(now);
        self.ledger.extend_all(time);
    }

    /// Notes that every lease has its full TTL.
    fn note_extended(&mut self, sim: &Sim) {
        let now = self.now(sim);
        self.store_time(now);
        for due in self.due.values_mut().filter(|due| !due.lingers) {
            due.at = self.active + due.ttl;
        }
    }

    /// The clock thread.
    pub(crate) fn tick(&mut self, sim: &mut Sim) {
        let (server, life) = (self.index, self.life);
        let pause = if self.role == Role::Standby { STANDBY_TICK } else { TICK };
        self.after(sim, Duration::from_nanos(pause), Event::Tick { server, life });
        self.forget_passing(sim);
        let now = self.now(sim);
        if !self.is_writable(now) {
            self.store_time(now);
            return;
        }
        self.apply(sim, |ledger, now| ledger.expire(now));
        if self.stamp_is_due() {
            self.wake_journal(sim, Duration::ZERO);
        }
        let late = self.active.saturating_sub(Duration::from_secs(1));
        if let Some(due) = self.due.values().find(|due| due.at < late) {
            let serial = due.id.serial();
            sim.truth.violate(|| format!("lease {serial} is left a second after its end"));
        }
    }

    fn stamp_is_due(&self) -> bool {
        let since = self.ledger.now().since(self.stamped);
        !self.ledger.is_empty() && since >= Duration::from_secs(1)
    }

    fn stamp(&self) -> Stamp {
        Stamp { time: self.ledger.now(), next_serial: self.ledger.next_serial() }
    }

    /// An operator wants another leader, or stops this server.
    pub(crate) fn drain(&mut self, sim: &mut Sim, is_stopping: bool) {
        self.is_stopping |= is_stopping;
        if is_stopping {
            self.leadership.set_candidate(false);
        }
        if self.leadership.term().is_some() {
            self.is_draining = matches!(self.role, Role::Leader { serves: true, .. });
            self.gives_up_draining = self.now(sim) + sim.settings.leader_ttl;
        }
        self.lead(sim);
    }

    /// Its ledger does not answer for some time.
    pub(crate) fn stick(&mut self, sim: &Sim, time: u64) {
        self.stuck_until = self.now(sim) + Duration::from_nanos(time);
    }
}

/// A fence at a row, for a term that begins.
fn begin(row: JournalRow, read_at: u64, promotions: u64) -> Running {
    Running {
        fence: Fence::new(row),
        journal: Journal::Loading,
        is_in_doubt: false,
        valid_until: Duration::ZERO,
        reader: Reader { ids: vec![row.leader], read_at },
        promotions,
    }
}
