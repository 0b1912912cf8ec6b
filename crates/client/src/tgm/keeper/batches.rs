//! Keep-alives that share one stream: what goes into a batch, and what its answer says.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Keeper;
use crate::error::Error;
use crate::heartbeat::Due;
use crate::tgm::answer::KeepAliveAnswer;
use crate::tgm::attachment::{Batch, Detached, MOST_KEYS, Wish};

/// How much too early a keep-alive may go along with one that is due.
const EARLY: Duration = Duration::from_millis(100);

/// A batch that the driver has to send.
#[derive(Debug)]
pub(crate) struct BatchCall {
    pub(crate) batch: u64,
    pub(crate) keys: Vec<String>,
}

impl Keeper {
    /// Returns when a stream has to be opened, if nothing happens before.
    pub(crate) fn attaches_at(&self, now: Instant) -> Option<Instant> {
        self.wants_stream().then(|| self.attachment.opens_at(now)).flatten()
    }

    /// Returns what the driver has to do about the stream.
    ///
    /// After [`Wish::Open`] it tells [`Keeper::attached`] or [`Keeper::detached`].
    pub(crate) fn stream(&mut self, now: Instant) -> Wish {
        let wanted = self.wants_stream();
        self.attachment.wish(wanted, now)
    }

    fn wants_stream(&self) -> bool {
        !self.closing && !self.held.is_empty()
    }

    /// Notes that the server has accepted the stream. Everything held is named on it, so that a
    /// revocation is pushed.
    pub(crate) fn attached(&mut self, now: Instant) {
        tracing::debug!("keep-alives go over one stream");
        self.saw_link(true, now);
        self.attachment.opened(self.held.keys().copied(), now);
    }

    /// Notes that the stream is over. No lease ends with it: what was under way is due at once, by
    /// calls of its own.
    pub(crate) fn detached(&mut self, why: Detached, now: Instant) {
        let batches = self.close_stream(why, now);
        tracing::debug!(?why, batches = batches.len(), "keep-alives go by calls of their own");
        for number in batches.into_iter().flat_map(|batch| batch.numbers) {
            if self.answered(number, now).is_some() {
                self.heartbeat.interrupted(number, now);
            }
        }
    }

    /// Returns the next batch that is due at `now`, over the stream that is open.
    pub(crate) fn next_batch(&mut self, now: Instant) -> Option<BatchCall> {
        if self.attachment.is_late(now) {
            self.late(now);
        }
        let beats = self.heartbeat.next().is_some_and(|at| at <= now);
        let naming = self.attachment.naming_is_due(now);
        if !self.attachment.has_room() || !(beats || naming) {
            return None;
        }
        let numbers = self.batch(beats, now);
        if numbers.is_empty() {
            return None;
        }
        let mut keys = Vec::with_capacity(numbers.len());
        for number in &numbers {
            let held = self.held.get_mut(number).expect("the schedule knows held leases only");
            held.calling = true;
            keys.push(held.key.as_ref().to_owned());
        }
        Some(BatchCall { batch: self.attachment.sends(numbers, now), keys })
    }

    /// Takes what is due, what soon will be, and then what is yet to be named.
    fn batch(&mut self, beats: bool, now: Instant) -> Vec<u64> {
        let mut numbers = Vec::new();
        let until = now + EARLY.min(self.rules.delay / 8);
        while beats && numbers.len() < MOST_KEYS {
            match self.heartbeat.due_together(now, until, &mut self.rng) {
                Some(Due::KeepAlive(number)) => numbers.push(number),
                Some(Due::Lost(number)) => self.lost(number),
                Some(Due::Borrow(_)) | None => break,
            }
        }
        while numbers.len() < MOST_KEYS {
            let Some(number) = self.attachment.next_unnamed(now) else { break };
            if self.heartbeat.take(number) {
                numbers.push(number);
            }
        }
        numbers
    }

    /// Gives the stream up: it owes an answer for too long.
    fn late(&mut self, now: Instant) {
        let error = Error::unavailable("keep-alives over the stream were not answered in time");
        for batch in self.close_stream(Detached::Broken, now) {
            for number in batch.numbers {
                let fault = KeepAliveAnswer::Fault(error.clone());
                self.heard(number, fault, batch.sent, now);
            }
        }
    }

    /// Returns the batches that nobody will answer. What was to be named is kept alive in its turn.
    fn close_stream(&mut self, why: Detached, now: Instant) -> Vec<Batch> {
        for number in self.attachment.take_unnamed() {
            self.heartbeat.line_up_new(number, now, &mut self.rng);
        }
        self.attachment.closed(why, now, &mut self.rng)
    }

    /// Takes the answer to a batch: what became of the keys at some places; all others have their
    /// full TTL again. Returns whether the answer makes sense.
    pub(crate) fn batch_answered(
        &mut self,
        batch: u64,
        mut places: HashMap<u32, KeepAliveAnswer>,
        now: Instant,
    ) -> bool {
        let Some(batch) = self.attachment.answered(batch) else { return false };
        self.saw_link(true, now);
        for (place, number) in (0..).zip(batch.numbers) {
            let answer = places.remove(&place).unwrap_or(KeepAliveAnswer::Extended(None));
            self.heard(number, answer, batch.sent, now);
        }
        places.is_empty()
    }

    /// Ends the session of a lease that was revoked just now.
    pub(crate) fn pushed(&mut self, key: &str, reason: &Error) {
        if let Some(number) = self.keys.get(key).copied() {
            self.revoked(number, reason);
        }
    }

    /// Whether a batch waits for its answer.
    pub(super) fn batches_under_way(&self) -> bool {
        self.attachment.under_way() > 0
    }

    /// Keeps the way from the key of a lease to its number.
    pub(super) fn rekey(&mut self, number: u64, key: &str) {
        let Some(held) = self.held.get_mut(&number) else { return };
        self.keys.remove(&held.key);
        held.key = key.into();
        held.lease.set_key(held.key.clone());
        self.keys.insert(held.key.clone(), number);
    }
}
