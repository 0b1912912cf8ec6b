//! One streaming service: the real core of the client library, and a user who borrows and returns.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lease::{BorrowId, LeaseId};
use rand::RngExt as _;
use tgm_session::simulation::{Asked, Borrowed, Kept, Pool, Target, Todo, Wanted};
use tgm_session::{Lease, Released};

use crate::clock::{Clock, MILLISECOND};
use crate::event::{Answer, Call, Event, What};
use crate::sim::{SERVERS, Sim};
use crate::truth::{ORGANIZATIONS, SERVICES, TRACE_LIMIT};

/// How long a borrow of a user may take, with retries.
const BORROW_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one try of a return may take.
const RETURN_DEADLINE: Duration = Duration::from_secs(10);

/// How long a server may take to accept a stream.
const ACCEPT_DEADLINE: Duration = Duration::from_secs(5);

/// What a call in flight is for.
#[derive(Debug)]
enum Purpose {
    /// The borrow of a user.
    Borrow(u64),
    KeepAlive(u64),
    /// A lease that was forgotten is borrowed again.
    BorrowAgain(u64),
    Return(u64, Option<LeaseId>),
    Batch {
        stream: u64,
        number: u64,
        keys: usize,
    },
}

#[derive(Debug)]
struct InFlight {
    purpose: Purpose,
    sent: Instant,
    server: usize,
}

/// A borrow of a user, as `tgm::borrow` does it.
#[derive(Debug)]
struct Borrow {
    asked: Asked,
    id: BorrowId,
    /// Whether the server may hold a lease for this borrow id.
    is_doubted: bool,
    deadline: Instant,
    failures: u32,
}

#[derive(Debug)]
pub(crate) struct Client {
    index: usize,
    pub(crate) clock: Clock,
    pub(crate) life: u32,
    pub(crate) is_paused: bool,
    /// What arrives while it is paused.
    pub(crate) inbox: Vec<Event>,
    start: Instant,
    pool: Pool,
    /// The server that it calls.
    home: usize,
    wake: u64,
    calls: BTreeMap<u64, InFlight>,
    borrows: BTreeMap<u64, Borrow>,
    stream: Option<u64>,
    held: Vec<Arc<Lease>>,
    beliefs: Vec<(u64, Arc<str>, u64)>,
    /// Whether the last answer came from a ghost.
    is_ghost: bool,
}

impl Client {
    pub(crate) fn new(sim: &mut Sim, index: usize, clock: Clock, start: Instant) -> Self {
        let now = start + clock.at(sim.time);
        Self {
            index,
            clock,
            life: 0,
            is_paused: false,
            inbox: Vec::new(),
            start,
            pool: Pool::new(sim.random.random(), now),
            home: sim.random.random_range(0..SERVERS),
            wake: 0,
            calls: BTreeMap::new(),
            borrows: BTreeMap::new(),
            stream: None,
            held: Vec::new(),
            beliefs: Vec::new(),
            is_ghost: false,
        }
    }

    /// The process is killed, and starts again.
    pub(crate) fn restart(&mut self, sim: &mut Sim) {
        let (index, clock, start, life) = (self.index, self.clock, self.start, self.life);
        *self = Self { life: life + 1, ..Self::new(sim, index, clock, start) };
        sim.truth.believe(index, false, &[]);
        sim.after(0, Event::Act { client: index, life: self.life });
    }

    fn now(&self, sim: &Sim) -> Instant {
        self.start + self.clock.at(sim.time)
    }

    fn at(&self, sim: &mut Sim, at: Instant, event: Event) {
        let time = self.clock.when(at.saturating_duration_since(self.start));
        sim.at(time.max(sim.time), event);
    }

    /// Does what the core wants, and tells what it believes to hold.
    pub(crate) fn poll(&mut self, sim: &mut Sim) {
        let now = self.now(sim);
        while let Some(todo) = self.pool.poll(now) {
            self.carry_out(sim, todo, now);
        }
        let (client, life) = (self.index, self.life);
        self.wake += 1;
        if let Some(at) = self.pool.poll_timeout(now) {
            let at = at.max(now + Duration::from_micros(10));
            self.at(sim, at, Event::Wake { client, life, wake: self.wake });
        }
        let Self { pool, beliefs, clock, start, .. } = self;
        beliefs.clear();
        pool.beliefs(|belief| {
            let until = clock.when(belief.until.saturating_duration_since(*start));
            beliefs.push((belief.lease, belief.key.clone(), until));
        });
        sim.truth.believe(client, self.is_ghost, beliefs);
    }

    pub(crate) fn wake(&mut self, sim: &mut Sim, wake: u64) {
        if wake == self.wake {
            self.poll(sim);
        }
    }

    fn carry_out(&mut self, sim: &mut Sim, todo: Todo, now: Instant) {
        match todo {
            Todo::OpenStream => {
                let stream = sim.number();
                self.stream = Some(stream);
                let (client, life, server) = (self.index, self.life, self.home);
                sim.send(&[server], Event::Attach { server, client, life, stream });
                let late = now + ACCEPT_DEADLINE;
                self.at(sim, late, Event::Unopened { client, life, stream });
            }
            Todo::CloseStream => self.stream = None,
            Todo::Batch { number, keys } => {
                let Some(stream) = self.stream else { return };
                let purpose = Purpose::Batch { stream, number, keys: keys.len() };
                self.call(sim, purpose, What::Batch { keys }, None);
            }
            Todo::KeepAlive { lease, key, deadline } => {
                let purpose = Purpose::KeepAlive(lease);
                self.call(sim, purpose, What::KeepAlive { key }, Some(deadline));
            }
            Todo::Borrow { lease, wanted, id, deadline } => {
                let purpose = Purpose::BorrowAgain(lease);
                self.call(sim, purpose, What::Borrow { wanted, id }, Some(deadline));
            }
            Todo::Return { lease, target, minimal_life } => {
                let id = match &target {
                    Target::Key(key) => key.parse().ok(),
                    Target::Borrow(_) => None,
                };
                let what = What::Return { target, minimal_life };
                self.call(sim, Purpose::Return(lease, id), what, Some(RETURN_DEADLINE));
            }
        }
    }

    fn call(&mut self, sim: &mut Sim, purpose: Purpose, what: What, deadline: Option<Duration>) {
        let (client, life, server) = (self.index, self.life, self.home);
        let (number, sent) = (sim.number(), self.now(sim));
        self.calls.insert(number, InFlight { purpose, sent, server });
        let call = Rc::new(Call { number, client, life, what });
        sim.send(&[server], Event::Call { server, call });
        if let Some(deadline) = deadline {
            self.at(sim, sent + deadline, Event::Deadline { client, life, call: number });
        }
    }

    /// The deadline of a call has passed.
    pub(crate) fn late(&mut self, sim: &mut Sim, call: u64) {
        let Some(InFlight { server, .. }) = self.calls.get(&call) else { return };
        let server = *server;
        sim.send(&[server], Event::Cancel { server, call });
        if sim.chance(0.3) {
            self.home = sim.random.random_range(0..SERVERS);
        }
        self.answer(sim, call, Answer::Unavailable, false);
    }

    /// A call is answered. [`Answer::NotLeader`] stands for a connection that was refused.
    pub(crate) fn answer(&mut self, sim: &mut Sim, call: u64, answer: Answer, is_ghost: bool) {
        let Some(InFlight { purpose, sent, .. }) = self.calls.remove(&call) else { return };
        self.is_ghost = is_ghost;
        let now = self.now(sim);
        let was_sent = !matches!(answer, Answer::NotLeader);
        if !was_sent {
            self.home = sim.random.random_range(0..SERVERS);
        }
        match purpose {
            Purpose::Borrow(borrow) => self.borrowed(sim, borrow, answer, sent),
            Purpose::KeepAlive(lease) => {
                let kept = if let Answer::Kept(kept) = answer { kept } else { Kept::Unavailable };
                self.pool.handle_keep_alive(lease, kept, sent, now);
            }
            Purpose::BorrowAgain(lease) => {
                let borrowed = match answer {
                    Answer::Granted { id, ttl, minimal_life } => {
                        sim.truth.acknowledge_grant(id);
                        Borrowed::Granted { key: id.to_string(), ttl, minimal_life }
                    }
                    Answer::Refused => Borrowed::Refused,
                    Answer::IdUsed => Borrowed::IdUsed,
                    _ => Borrowed::Fault { sent: was_sent },
                };
                self.pool.handle_borrow(lease, borrowed, sent, now);
            }
            Purpose::Return(lease, id) => {
                let released = if let Answer::Returned(it) = answer { Some(it) } else { None };
                if let (Some(id), Some(Released::Returned | Released::Lingers)) = (id, released) {
                    sim.truth.acknowledge_return(id, released == Some(Released::Returned));
                }
                self.pool.handle_return(lease, released, now);
            }
            Purpose::Batch { stream, number, keys } => {
                if self.stream == Some(stream) {
                    let places = match answer {
                        Answer::Places(places) => places,
                        _ => (0..).take(keys).map(|place| (place, Kept::Unavailable)).collect(),
                    };
                    self.pool.stream_answered(number, &places, now);
                }
            }
        }
        self.poll(sim);
        self.is_ghost = false;
    }

    fn borrowed(&mut self, sim: &mut Sim, number: u64, answer: Answer, sent: Instant) {
        let now = self.now(sim);
        let Some(mut borrow) = self.borrows.remove(&number) else { return };
        match answer {
            Answer::Granted { id, ttl, minimal_life } => {
                sim.truth.acknowledge_grant(id);
                let grant = (id.to_string(), ttl, minimal_life);
                let held = self.pool.handle_grant(&borrow.asked, grant, sent, now);
                self.held.extend(held);
                return;
            }
            Answer::Refused => {
                self.pool.handle_link(true, now);
                let doubted = borrow.is_doubted.then_some(borrow.id);
                return self.pool.end_borrow(&borrow.asked, doubted, now);
            }
            Answer::IdUsed => {
                self.pool.handle_link(true, now);
                self.pool.give_back(Target::Borrow(borrow.id), now);
                (borrow.id, borrow.is_doubted) = (BorrowId(sim.random.random()), false);
            }
            answer => {
                borrow.is_doubted |= !matches!(answer, Answer::NotLeader);
                self.pool.handle_link(false, now);
            }
        }
        borrow.failures += 1;
        let pause = Duration::from_millis(50) * (1 << borrow.failures.min(5) >> 1);
        let again = now + pause.mul_f64(sim.random.random_range(0.5..=1.0));
        if again >= borrow.deadline {
            let doubted = borrow.is_doubted.then_some(borrow.id);
            return self.pool.end_borrow(&borrow.asked, doubted, now);
        }
        self.borrows.insert(number, borrow);
        let (client, life) = (self.index, self.life);
        self.at(sim, again, Event::TryAgain { client, life, borrow: number });
    }

    /// The next try of a borrow.
    pub(crate) fn try_again(&mut self, sim: &mut Sim, number: u64) {
        let now = self.now(sim);
        let Some(borrow) = self.borrows.get_mut(&number) else { return };
        let left = borrow.deadline.saturating_duration_since(now);
        let what = What::Borrow { wanted: borrow.asked.wanted(), id: borrow.id };
        self.call(sim, Purpose::Borrow(number), what, Some(left));
    }

    /// The user borrows or returns something.
    pub(crate) fn act(&mut self, sim: &mut Sim) {
        let now = self.now(sim);
        let (client, life) = (self.index, self.life);
        let pause = sim.random.random_range(50 * MILLISECOND..1_500 * MILLISECOND);
        sim.after(pause, Event::Act { client, life });
        let chance = sim.random.random_range(0..100);
        let is_ended = |lease: &Arc<Lease>| lease.end_reason().is_some();
        let number = if let Some(ended) = self.held.iter().position(is_ended) {
            Some(ended)
        } else if chance < 35 && !self.held.is_empty() {
            Some(sim.random.random_range(0..self.held.len()))
        } else {
            None
        };
        if let Some(place) = number {
            let lease = self.held.swap_remove(place);
            let lives = [0, 0, 0, 2, 5];
            let minimal_life = Duration::from_secs(lives[sim.random.random_range(0..lives.len())]);
            self.pool.release(lease.number(), minimal_life, now);
        } else {
            self.begin_borrow(sim, chance < 70, now);
        }
        self.poll(sim);
    }

    fn begin_borrow(&mut self, sim: &mut Sim, is_session: bool, now: Instant) {
        let is_a_session = |lease: &&Arc<Lease>| *lease.ids().service == *SERVICES[0];
        let sessions: Vec<u64> =
            self.held.iter().filter(is_a_session).map(|lease| lease.number()).collect();
        let asked = if is_session || sessions.is_empty() {
            let trace = sim.number();
            let wanted = Wanted {
                service: SERVICES[0].into(),
                organization: ORGANIZATIONS[sim.random.random_range(0..2)].into(),
                trace: format!("{trace:x}").into(),
                most_workers: 0,
            };
            self.pool.begin_session(&wanted, now)
        } else {
            let session = sessions[sim.random.random_range(0..sessions.len())];
            self.pool.begin_worker(session, &SERVICES[1].into(), TRACE_LIMIT)
        };
        let Some(asked) = asked else { return };
        let (number, id) = (sim.number(), BorrowId(sim.random.random()));
        let deadline = now + BORROW_TIMEOUT;
        let borrow = Borrow { asked, id, is_doubted: false, deadline, failures: 0 };
        self.borrows.insert(number, borrow);
        self.try_again(sim, number);
    }

    /// The server has accepted a stream.
    pub(crate) fn attached(&mut self, sim: &mut Sim, stream: u64) {
        if self.stream == Some(stream) {
            let now = self.now(sim);
            self.pool.stream_opened(now);
            self.poll(sim);
        }
    }

    /// The connection to a server is lost.
    pub(crate) fn disconnected(&mut self, sim: &mut Sim, server: usize) {
        let lost = self.calls.iter().filter(|(_, call)| call.server == server);
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        self.home = sim.random.random_range(0..SERVERS);
        for call in lost {
            self.answer(sim, call, Answer::Unavailable, false);
        }
    }

    /// A stream is over.
    pub(crate) fn detached(&mut self, sim: &mut Sim, stream: u64) {
        let now = self.now(sim);
        if self.stream == Some(stream) {
            self.stream = None;
            self.pool.stream_over(now);
            self.poll(sim);
        }
    }

    /// A server has not accepted a stream in time.
    pub(crate) fn unopened(&mut self, sim: &mut Sim, stream: u64) {
        if !self.pool.is_attached() {
            self.detached(sim, stream);
        }
    }
}
