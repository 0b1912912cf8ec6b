//! What has to be given back, and when the next try is due: a pure queue.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use lease::BorrowId;
use rand::{Rng, RngExt};
use tokio::sync::oneshot;

use crate::error::Error;
use crate::held::Released;
use crate::link::Link;
use crate::plugin::CloseReport;

/// Most calls under way at once.
const MOST_CALLS: usize = 64;

/// The pauses between tries double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a session waits for the first try of each of its workers to be answered. They end with
/// it, so nothing is lost when they turn out to be late.
const SESSION_PATIENCE: Duration = Duration::from_secs(1);

/// How long a return waits while the link admits no more calls.
const LINK_PAUSE: Duration = Duration::from_secs(1);

/// What the server is asked to take back.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// The lease of this key.
    Key(Arc<str>),
    /// Whatever this borrow took: its answer never came.
    Borrow(BorrowId),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(_) => f.write_str("Key(..)"),
            Self::Borrow(_) => f.write_str("Borrow(..)"),
        }
    }
}

/// One try that is due.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) number: u64,
    pub(crate) target: Target,
    pub(crate) minimal_life: Option<Duration>,
}

/// A return that is over: who waits for it, and how it went.
pub(crate) type Settled = (Vec<oneshot::Sender<Result<Released, Error>>>, Result<Released, Error>);

/// One lease on its way back.
#[derive(Debug)]
pub(crate) struct Return {
    /// `None` when the server holds nothing: it only keeps the order.
    pub(crate) target: Option<Target>,
    pub(crate) minimal_life: Option<Duration>,
    /// When to stop trying: the lease's own TTL has freed the slot by then.
    pub(crate) give_up: Instant,
    /// How many things it waits for before its first try: a call of its own under way, workers.
    pub(crate) holds: usize,
    /// The session of a worker: it waits until this was tried once.
    pub(crate) session: Option<u64>,
}

#[derive(Debug)]
struct Item {
    order: Return,
    tries: u32,
    /// Why the last try failed.
    fault: Option<Error>,
    waiters: Vec<oneshot::Sender<Result<Released, Error>>>,
}

/// All returns of one pool that are not settled.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    items: HashMap<u64, Item, RandomState>,
    queue: BinaryHeap<Reverse<(Instant, u64)>>,
    /// When each of them is given up, whatever it waits for then.
    ends: BTreeSet<(Instant, u64)>,
    calls: usize,
    /// The workers that their sessions wait for, in the order in which that ends.
    awaited: VecDeque<(Instant, u64)>,
    /// The sessions of workers that were tried for the first time.
    tried: Vec<u64>,
    settled: Vec<Settled>,
    tally: CloseReport,
    counts: Counts,
}

/// What became of returns since the pool was made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) returned: u64,
    pub(crate) not_returned: u64,
    pub(crate) retried: u64,
}

impl Returns {
    /// Queues the return of lease `number`.
    pub(crate) fn add(&mut self, number: u64, order: Return, now: Instant) {
        let ready = order.holds == 0;
        self.ends.insert((order.give_up, number));
        let item = Item { order, tries: 0, fault: None, waiters: Vec::new() };
        self.items.insert(number, item);
        if ready {
            self.ready(number, now);
        }
    }

    /// Notes that one of the things the return waited for has happened.
    pub(crate) fn unhold(&mut self, number: u64, now: Instant) {
        let Some(item) = self.items.get_mut(&number) else { return };
        if item.order.holds > 0 {
            item.order.holds -= 1;
            if item.order.holds == 0 {
                self.ready(number, now);
            }
        }
    }

    /// Changes what is given back, before the first try.
    pub(crate) fn retarget(&mut self, number: u64, target: Option<Target>) {
        if let Some(item) = self.items.get_mut(&number) {
            item.order.target = target;
        }
    }

    /// Returns a receiver of the outcome; `None` when nothing of that number is on its way.
    pub(crate) fn watch(
        &mut self,
        number: u64,
    ) -> Option<oneshot::Receiver<Result<Released, Error>>> {
        let (sender, receiver) = oneshot::channel();
        self.items.get_mut(&number)?.waiters.push(sender);
        Some(receiver)
    }

    /// Returns when to ask [`Returns::due`] again; `None` when only an answer can change that.
    pub(crate) fn next(&self) -> Option<Instant> {
        let awaited = self.awaited.front().map(|(until, _)| *until);
        let end = self.ends.first().map(|(at, _)| *at);
        self.next_try().into_iter().chain(awaited).chain(end).min()
    }

    fn next_try(&self) -> Option<Instant> {
        let Reverse((at, _)) = self.queue.peek()?;
        (self.calls < MOST_CALLS).then_some(*at)
    }

    /// Returns the next try that is due at `now`, and gives up what is to be given up by then.
    pub(crate) fn due(&mut self, now: Instant, link: &mut Link) -> Option<Attempt> {
        while let Some((_, number)) = self.ends.first().copied().filter(|(at, _)| *at <= now) {
            let item = self.items.get_mut(&number).expect("what is settled has no end");
            let fault = item.fault.take();
            let late = || Error::unavailable("the return was not answered within one TTL");
            self.settle(number, Err(fault.unwrap_or_else(late)));
        }
        while let Some((_, number)) = self.awaited.pop_front_if(|(until, _)| *until <= now) {
            self.is_tried(number);
        }
        while self.next_try().is_some_and(|at| at <= now) {
            let Reverse((_, number)) = self.queue.pop()?;
            let Some(item) = self.items.get_mut(&number) else { continue };
            let Some(target) = item.order.target.clone() else { continue };
            if !link.admits(now) {
                self.queue.push(Reverse((now + LINK_PAUSE, number)));
                continue;
            }
            self.calls += 1;
            if item.order.session.is_some() {
                self.awaited.push_back((now + SESSION_PATIENCE, number));
            }
            return Some(Attempt { number, target, minimal_life: item.order.minimal_life });
        }
        None
    }

    /// Takes the answer to a try; `again` says whether another try may help.
    pub(crate) fn answered(
        &mut self,
        number: u64,
        outcome: Result<Released, Error>,
        again: bool,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        self.calls -= 1;
        let Some(item) = self.items.get_mut(&number) else { return };
        item.tries += 1;
        self.tried.extend(item.order.session.take());
        // Most are answered in their order, so that nobody wakes for those that are.
        self.awaited.pop_front_if(|(_, awaited)| *awaited == number);
        match outcome {
            Err(error) if again => {
                let doubled = FIRST_PAUSE.saturating_mul(1 << item.tries.min(16).saturating_sub(1));
                let pause = doubled.min(LONGEST_PAUSE).mul_f64(rng.random_range(0.5..=1.0));
                item.fault = Some(error);
                if now + pause < item.order.give_up {
                    self.counts.retried += 1;
                    self.queue.push(Reverse((now + pause, number)));
                }
            }
            outcome => self.settle(number, outcome),
        }
    }

    /// Stops trying, for this reason: everything left counts as not returned.
    pub(crate) fn give_up(&mut self, why: &Error) {
        self.queue.clear();
        let numbers: Vec<u64> = self.items.keys().copied().collect();
        for number in numbers {
            self.settle(number, Err(why.clone()));
        }
    }

    /// Counts leases that nobody can return any more.
    pub(crate) fn lose(&mut self, leases: u64) {
        self.tally.not_returned += leases;
        self.counts.not_returned += leases;
    }

    /// Takes the sessions of which a worker was tried for the first time since the last time, once
    /// per worker.
    ///
    /// One try of each worker goes first, and a moment later it counts as made. A worker that cannot
    /// be returned yet does not keep the slot of its session taken.
    pub(crate) fn take_tried(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.tried)
    }

    /// Returns what is given up by `now`.
    #[cfg(test)]
    pub(crate) fn past(&self, now: Instant) -> Vec<Target> {
        let past = self.ends.iter().take_while(|(end, _)| *end <= now);
        past.filter_map(|(_, number)| self.items[number].order.target.clone()).collect()
    }

    /// Returns how many returns are not settled.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Forgets what became of earlier returns: a close tells what it did itself.
    pub(crate) fn begin_tally(&mut self) {
        self.tally = CloseReport::default();
    }

    /// Returns what became of all returns since [`Returns::begin_tally`].
    pub(crate) fn tally(&self) -> CloseReport {
        self.tally
    }

    /// Returns what became of all returns since the pool was made.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes the returns that were settled since the last time.
    pub(crate) fn take_settled(&mut self) -> Vec<Settled> {
        std::mem::take(&mut self.settled)
    }

    fn is_tried(&mut self, number: u64) {
        let item = self.items.get_mut(&number);
        self.tried.extend(item.and_then(|item| item.order.session.take()));
    }

    fn ready(&mut self, number: u64, now: Instant) {
        let Some(item) = self.items.get_mut(&number) else { return };
        if item.order.target.is_some() {
            self.queue.push(Reverse((now, number)));
            return;
        }
        self.settle(number, Ok(Released::Missing));
    }

    fn settle(&mut self, number: u64, outcome: Result<Released, Error>) {
        let Some(item) = self.items.remove(&number) else { return };
        self.ends.remove(&(item.order.give_up, number));
        self.tried.extend(item.order.session);
        match &outcome {
            Ok(_) if matches!(item.order.target, Some(Target::Key(_))) => {
                self.tally.returned += 1;
                self.counts.returned += 1;
            }
            // Nothing was held, or nobody knows whether anything was.
            Ok(_) => {}
            Err(error) => {
                self.lose(1);
                tracing::warn!(lease = number, tries = item.tries, %error, "a return was given up");
            }
        }
        if !item.waiters.is_empty() {
            self.settled.push((item.waiters, outcome));
        }
    }
}

#[cfg(test)]
mod tests;
