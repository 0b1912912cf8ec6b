//! The thread of the journal, as `store::shared::committing` and the committer of PostgreSQL do it.

use std::rc::Rc;
use std::time::Duration;

use store::fleet::Resolved;
use tgm_session::simulation::Kept;

use super::Server;
use super::batch::{Batch, Journal, To, Waiter};
use crate::event::{Answer, Call, Event, What};
use crate::message::{Connection, Reply, Request};
use crate::sim::Sim;

/// How long after a failure a commit is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

impl Server {
    /// Lets the thread of the journal go on.
    pub(super) fn wake_journal(&mut self, sim: &mut Sim, after: Duration) {
        self.journal_wake += 1;
        let (server, life, wake) = (self.index, self.life, self.journal_wake);
        // Calls that are ready join the batch.
        let after = after.max(Duration::from_micros(50));
        self.after(sim, after, Event::Journal { server, life, wake });
    }

    /// Sends the next commit, or asks what became of the last one.
    pub(crate) fn go_on_committing(&mut self, sim: &mut Sim, wake: u64) {
        if wake != self.journal_wake {
            return;
        }
        if self.is_rewriting {
            return;
        }
        let Some(running) = &self.running else { return };
        let (seen, new) = (running.fence.seen(), running.fence.next());
        let request = match running.journal {
            Journal::Loading => return self.load(sim),
            Journal::Committing | Journal::Resolving => return,
            Journal::Unknown => Request::Resolve { leader: seen.leader },
            Journal::Idle => {
                if self.committing.is_none() && !self.take_batch() {
                    return;
                }
                let Some(Batch { changes, stamp, .. }) = &self.committing else { return };
                Request::Commit { seen, new, changes: changes.clone(), stamp: *stamp }
            }
        };
        let is_commit = matches!(request, Request::Commit { .. });
        if let Some(running) = &mut self.running {
            running.journal = if is_commit { Journal::Committing } else { Journal::Resolving };
        }
        self.commit += 1;
        let asker = self.asker(Connection::Journal, self.commit);
        let within = sim.settings.leader_ttl / 2;
        sim.ask(asker, within, request);
        let reply = Box::new(Reply::Failed);
        self.after(sim, within, Event::Reply { asker, reply });
    }

    fn take_batch(&mut self) -> bool {
        if self.pending.is_empty() && !self.stamp_is_due() {
            return false;
        }
        let changes = Rc::new(std::mem::take(&mut self.pending));
        let waiters = std::mem::take(&mut self.gathering);
        self.committing = Some(Batch { changes, stamp: self.stamp(), waiters });
        true
    }

    /// The database, or the deadline of the request, has answered.
    pub(crate) fn committed(&mut self, sim: &mut Sim, number: u64, reply: Reply) {
        if self.commit != number {
            return;
        }
        self.commit += 1;
        let Some(running) = &mut self.running else { return };
        if running.journal == Journal::Loading {
            return self.loaded(sim, reply);
        }
        let is_committed = match reply {
            Reply::Committed(true) => {
                running.fence.committed();
                true
            }
            Reply::Row(row) => match running.fence.resolve(row) {
                Resolved::Committed => true,
                Resolved::NotCommitted => {
                    sim.truth.counts.resolved += 1;
                    running.journal = Journal::Idle;
                    return self.wake_journal(sim, Duration::ZERO);
                }
                Resolved::Lost | Resolved::OtherLeader => {
                    running.is_in_doubt = true;
                    running.journal = Journal::Unknown;
                    self.wake_journal(sim, TRY_AGAIN_AFTER);
                    return self.lead(sim);
                }
            },
            reply => {
                running.journal = Journal::Unknown;
                let is_known = matches!(reply, Reply::Committed(false));
                let after = if is_known { Duration::ZERO } else { TRY_AGAIN_AFTER };
                return self.wake_journal(sim, after);
            }
        };
        if is_committed {
            running.journal = Journal::Idle;
            self.leadership.committed(running.fence.sequence());
            if let Some(Batch { stamp, waiters, .. }) = self.committing.take() {
                self.stamped = stamp.time;
                self.settle(sim, waiters, true);
            }
            self.wake_journal(sim, Duration::ZERO);
            if self.is_draining {
                self.lead(sim);
            }
        }
    }

    /// Answers the calls that waited for a batch.
    pub(super) fn settle(&mut self, sim: &mut Sim, waiters: Vec<Waiter>, is_durable: bool) {
        for waiter in waiters {
            if is_durable {
                self.answer(sim, waiter);
            } else {
                let Waiter { call, to, .. } = waiter;
                self.send_answer(sim, &call, to, Answer::Unavailable);
            }
        }
    }

    /// Answers a call. If its caller is gone, a grant is taken back.
    pub(super) fn answer(&mut self, sim: &mut Sim, waiter: Waiter) {
        let Waiter { call, to, answer, delivery } = waiter;
        self.look_for_lost_grants(sim, &call, &answer);
        if let Some(place) = self.cancelled.iter().position(|it| *it == call.number)
            && matches!(to, To::Client)
        {
            self.cancelled.remove(place);
            self.received.remove(&call.number);
            if let Some(id) = delivery {
                self.take_back(sim, id);
            }
            return;
        }
        if let Some(id) = delivery {
            match to {
                To::Client => self.delivered(id),
                To::Standby(hop) => {
                    self.forwarded.insert((call.number, hop.attempt, hop.server), id);
                }
            }
        }
        self.send_answer(sim, &call, to, answer);
    }

    /// Checks that an answer of this leader denies no lease that lives.
    fn look_for_lost_grants(&self, sim: &mut Sim, call: &Call, answer: &Answer) {
        if self.is_ghost(sim) {
            return;
        }
        match (&call.what, answer) {
            (What::KeepAlive { key }, Answer::Kept(Kept::Forgotten)) => {
                if let Ok(id) = key.parse() {
                    sim.truth.is_missing(id);
                }
            }
            (What::Batch { keys, .. }, Answer::Places(places)) => {
                for (place, kept) in places {
                    if *kept == Kept::Forgotten
                        && let Some(Ok(id)) = keys.get(*place as usize).map(|key| key.parse())
                    {
                        sim.truth.is_missing(id);
                    }
                }
            }
            _ => {}
        }
    }

    pub(super) fn send_answer(&mut self, sim: &mut Sim, call: &Call, to: To, answer: Answer) {
        let (is_ghost, number) = (self.is_ghost(sim), call.number);
        match to {
            To::Client => {
                self.received.remove(&number);
                let (client, life) = (call.client, call.life);
                let event = Event::Answer { client, life, call: number, answer, is_ghost };
                sim.send(&[self.index], event);
            }
            To::Standby(hop) => {
                let from = self.index;
                let event = Event::Forwarded { hop, from, call: number, answer, is_ghost };
                sim.send(&[self.index, hop.server], event);
            }
        }
    }
}
