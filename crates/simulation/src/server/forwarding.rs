//! What a server does with a call that another one has to apply (spec §8 point 6).

use std::rc::Rc;
use std::time::Duration;

use store::fleet::LeaderId;

use super::Server;
use super::batch::To;
use super::passing::{Passing, Received, TermId};
use crate::clock::{SECOND, Time};
use crate::event::{Answer, Call, Event, Hop, What};
use crate::sim::Sim;

/// How long a call is held while no leader is known.
const HOLD: Time = 2 * SECOND;

/// How long a batch is held: its client gives up before.
const HOLD_BATCH: Time = 6 * SECOND;

/// How often a held call looks again for a leader.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// When an entry of a call without an answer is forgotten.
const FORGET_AFTER: Time = 30 * SECOND;

impl Server {
    /// A call of a client arrives.
    pub(crate) fn receive(&mut self, sim: &mut Sim, call: Rc<Call>) {
        let (client, life) = (call.client, call.life);
        self.received.insert(call.number, Received { client, life });
        if self.leads() {
            self.apply_call(sim, &call, To::Client);
        } else {
            let (number, since) = (call.number, sim.time);
            let passing = Passing { call, since, sent: None, is_cancelled: false };
            self.passing.insert(number, passing);
            self.pass_on(sim, number);
        }
    }

    /// The other server that leads, as far as this one knows.
    fn known_leader(&self) -> Option<(usize, TermId)> {
        let row = self.leadership.leader()?;
        let at = row.address.parse().ok().filter(|at| *at != self.index)?;
        Some((at, (row.epoch, row.leader)))
    }

    /// Sends a call to the leader, applies it if that is this server, or holds it.
    pub(super) fn pass_on(&mut self, sim: &mut Sim, number: u64) {
        if self.leads() {
            if let Some(Passing { call, is_cancelled: false, .. }) = self.passing.remove(&number) {
                self.apply_call(sim, &call, To::Client);
            }
            return;
        }
        let leader = self.known_leader();
        let Some(passing) = self.passing.get_mut(&number) else { return };
        if passing.is_cancelled {
            self.passing.remove(&number);
            return;
        }
        let call = passing.call.clone();
        if let Some((server, term)) = leader {
            self.attempts += 1;
            let attempt = self.attempts;
            passing.sent = Some((server, term.1, attempt));
            let hop = Hop { server: self.index, life: self.life, attempt };
            sim.truth.counts.forwarded += 1;
            return sim.send(&[self.index, server], Event::Forward { server, hop, term, call });
        }
        self.hold(sim, number);
    }

    /// Holds a call that was not applied, unless it was held long enough.
    fn hold(&mut self, sim: &mut Sim, number: u64) {
        let Some(Passing { call, since, .. }) = self.passing.get(&number) else { return };
        let longest = if matches!(call.what, What::Batch { .. }) { HOLD_BATCH } else { HOLD };
        if sim.time > since + longest {
            let call = call.clone();
            self.passing.remove(&number);
            return self.send_answer(sim, &call, To::Client, Answer::Unavailable);
        }
        if !self.is_holding {
            self.is_holding = true;
            let (server, life) = (self.index, self.life);
            self.after(sim, LOOK_EVERY, Event::Hold { server, life });
        }
    }

    /// Held calls look again for a leader.
    pub(crate) fn look_again(&mut self, sim: &mut Sim) {
        self.is_holding = false;
        let held = self.passing.iter().filter(|(_, passing)| passing.sent.is_none());
        for number in held.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.pass_on(sim, number);
        }
    }

    /// A standby sends a call for the leader of `term`.
    pub(crate) fn receive_forwarded(
        &mut self,
        sim: &mut Sim,
        hop: Hop,
        term: TermId,
        call: &Rc<Call>,
    ) {
        let is_mine = self.leadership.term().is_some_and(|row| (row.epoch, row.leader) == term);
        if is_mine && self.leads() {
            self.apply_call(sim, call, To::Standby(hop));
        } else {
            self.send_answer(sim, call, To::Standby(hop), Answer::NotLeader);
        }
    }

    /// The leader has answered a call.
    pub(crate) fn receive_answer(
        &mut self,
        sim: &mut Sim,
        (hop, from): (Hop, usize),
        number: u64,
        answer: Answer,
        is_ghost: bool,
    ) {
        let is_grant = matches!(answer, Answer::Granted { .. });
        let passing = self.passing.get_mut(&number).filter(|passing| {
            passing
                .sent
                .is_some_and(|(server, _, attempt)| (server, attempt) == (from, hop.attempt))
        });
        let mut is_handed_on = false;
        if let Some(passing) = passing {
            if matches!(answer, Answer::NotLeader) {
                // It was certainly not applied.
                passing.sent = None;
                return self.hold(sim, number);
            }
            if let Some(Passing { call, is_cancelled: false, .. }) = self.passing.remove(&number) {
                is_handed_on = true;
                self.received.remove(&number);
                let (client, life) = (call.client, call.life);
                let event = Event::Answer { client, life, call: number, answer, is_ghost };
                sim.send(&[self.index], event);
            }
        }
        if is_grant {
            let event = Event::HandedOn { server: from, hop, call: number, is_handed_on };
            sim.send(&[self.index, from], event);
        }
    }

    /// A standby reports what became of a grant that it was given.
    pub(crate) fn handed_on(&mut self, sim: &mut Sim, hop: Hop, call: u64, is_handed_on: bool) {
        let key = (call, hop.attempt, hop.server);
        let Some(id) = self.forwarded.remove(&key) else { return };
        if is_handed_on {
            self.delivered(id);
        } else {
            self.take_back(sim, id);
        }
    }

    /// The caller of a call has gone.
    pub(crate) fn cancel(&mut self, call: u64) {
        match self.passing.get_mut(&call) {
            Some(passing) if passing.sent.is_none() => drop(self.passing.remove(&call)),
            Some(passing) => passing.is_cancelled = true,
            None if self.received.contains_key(&call) => self.cancelled.push(call),
            None => {}
        }
        if self.cancelled.len() > 64 {
            self.cancelled.remove(0);
        }
    }

    /// Sends calls again whose leader is another one now, if they may be sent again.
    pub(super) fn notice_leader(&mut self, sim: &mut Sim) {
        let leader = self.known_leader().map(|(_, (_, id))| id);
        if leader.is_none() && !self.leads() || leader == self.leader {
            return;
        }
        self.leader = leader;
        self.give_up_sent(sim, |_, term| Some(term) != leader);
    }

    /// The connection to another server is lost: what became of the calls there is unknown. A forwarded
    /// grant of which nothing more is heard ends by its TTL.
    pub(crate) fn link_lost(&mut self, sim: &mut Sim, peer: usize) {
        self.forwarded.retain(|(_, _, server), _| *server != peer);
        self.give_up_sent(sim, |server, _| server == peer);
    }

    fn give_up_sent(&mut self, sim: &mut Sim, is_gone: impl Fn(usize, LeaderId) -> bool) {
        let gone = self.passing.iter().filter(|(_, passing)| {
            passing.sent.is_some_and(|(server, term, _)| is_gone(server, term))
        });
        let gone: Vec<u64> = gone.map(|(number, _)| *number).collect();
        for number in gone {
            let Some(passing) = self.passing.get_mut(&number) else { continue };
            if passing.call.may_be_sent_again() && !passing.is_cancelled {
                passing.sent = None;
                self.pass_on(sim, number);
            } else if let Some(Passing { call, is_cancelled: false, .. }) =
                self.passing.remove(&number)
            {
                self.send_answer(sim, &call, To::Client, Answer::Unavailable);
            }
        }
    }

    /// Forgets calls without an answer. Their callers have gone long ago.
    pub(super) fn forget_passing(&mut self, sim: &Sim) {
        if self.passing.len() > 8 {
            self.passing.retain(|_, passing| sim.time < passing.since + FORGET_AFTER);
        }
        if self.received.len() > 64 {
            self.received.pop_first();
        }
        if self.forwarded.len() > 64 {
            self.forwarded.pop_first();
        }
    }

    /// A client opens a stream.
    pub(crate) fn attach(&mut self, sim: &mut Sim, client: usize, life: u32, stream: u64) {
        self.streams.retain(|(of, ..)| *of != client);
        self.streams.push((client, life, stream));
        sim.send(&[self.index], Event::Attached { client, life, stream });
    }
}
