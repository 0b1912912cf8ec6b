//! What all parts of a simulation share: time, the queue of events, chance, and the truth.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use store::fleet::MemberId;

use crate::clock::{MILLISECOND, SECOND, Time};
use crate::event::Event;
use crate::message::{Asker, Reply, Request};
use crate::truth::Truth;

/// The number of servers.
pub(crate) const SERVERS: usize = 3;

/// The number of clients.
pub(crate) const CLIENTS: usize = 4;

/// What differs from seed to seed.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) leader_ttl: Duration,
    pub(crate) session_ttl: Duration,
    pub(crate) worker_ttl: Duration,
}

/// Time, events and chance.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) time: Time,
    pub(crate) random: ChaCha8Rng,
    pub(crate) settings: Settings,
    pub(crate) truth: Truth,
    /// Whether things go wrong now.
    pub(crate) faults: bool,
    /// Raised when the connections of the database break.
    pub(crate) incarnation: u32,
    /// The ids of the servers.
    pub(crate) members: [MemberId; SERVERS],
    /// Until when a server does not reach the database.
    pub(crate) cut_off: [Time; SERVERS],
    /// Until when a server reaches no other server, and no client reaches it.
    pub(crate) alone: [Time; SERVERS],
    queue: BinaryHeap<Reverse<(Time, u64, u32)>>,
    events: Vec<Option<Event>>,
    free: Vec<u32>,
    count: u64,
    numbers: u64,
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let settings = Settings {
            leader_ttl: Duration::from_millis(random.random_range(2_000..=5_000)),
            session_ttl: Duration::from_millis(random.random_range(6_000..=20_000)),
            worker_ttl: Duration::from_millis(random.random_range(4_000..=12_000)),
        };
        Self {
            time: 1_000 * SECOND,
            random,
            settings,
            truth: Truth::default(),
            faults: true,
            incarnation: 0,
            members: [MemberId::default(); SERVERS],
            cut_off: [0; SERVERS],
            alone: [0; SERVERS],
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            count: 0,
            numbers: 0,
        }
    }

    /// Lets an event happen at a time.
    pub(crate) fn at(&mut self, time: Time, event: Event) {
        self.count += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            (self.events.len() - 1) as u32
        });
        self.events[place as usize] = Some(event);
        self.queue.push(Reverse((time, self.count, place)));
    }

    /// Lets an event happen after some time.
    pub(crate) fn after(&mut self, time: Time, event: Event) {
        self.at(self.time + time, event);
    }

    /// A number that nothing else has.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Moves on to the next event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let Reverse((time, _, place)) = self.queue.pop()?;
        self.time = self.time.max(time);
        self.free.push(place);
        self.events[place as usize].take()
    }

    /// Whether something of this probability happens.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.random.random_bool(probability)
    }

    /// As [`Sim::chance`], while things go wrong.
    pub(crate) fn mishap(&mut self, probability: f64) -> bool {
        self.faults && self.chance(probability)
    }

    /// A time up to `longest`.
    pub(crate) fn up_to(&mut self, longest: Time) -> Time {
        self.random.random_range(0..=longest)
    }

    /// How long a message takes; `None` loses it.
    fn travel(&mut self, longest: Time) -> Option<Time> {
        if self.mishap(0.01) {
            return None;
        }
        let longest = if self.mishap(0.02) { longest } else { 2 * MILLISECOND };
        Some(self.up_to(longest))
    }

    /// Sends a message between two machines of which `servers` are servers.
    pub(crate) fn send(&mut self, servers: &[usize], event: Event) {
        let is_cut = servers.iter().any(|server| self.time < self.alone[*server]);
        if !is_cut && let Some(delay) = self.travel(4 * SECOND) {
            self.after(delay, event);
        }
    }

    /// Sends a request to the database.
    pub(crate) fn ask(&mut self, asker: Asker, within: Duration, request: Request) {
        let incarnation = self.incarnation;
        if self.time >= self.cut_off[asker.server]
            && let Some(delay) = self.travel(12 * SECOND)
        {
            let request = Box::new(request);
            self.after(delay, Event::Request { asker, incarnation, within, request });
        }
    }

    /// Sends an answer of the database.
    pub(crate) fn reply(&mut self, asker: Asker, reply: Reply) {
        if self.time >= self.cut_off[asker.server]
            && let Some(delay) = self.travel(12 * SECOND)
        {
            self.after(delay, Event::Reply { asker, reply: Box::new(reply) });
        }
    }
}
