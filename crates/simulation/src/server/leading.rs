//! The thread of the leadership, as `store::leading` and `store::shared::role` do it.

use std::rc::Rc;
use std::time::Duration;

use lease::{Change, StoreClock};
use rand::RngExt as _;
use store::fleet::{Answer, Event as Turn, JournalRow, Request as Election};

use super::batch::Journal;
use super::{Due, Role, Server, begin, new_ledger};
use crate::clock::MILLISECOND;
use crate::event::Event;
use crate::message::{Asker, Connection, Content, Reply, Request, Snapshot};
use crate::sim::{SERVERS, Sim};

/// How long a new leader waits before it reads the journal again after a failure.
const LOAD_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A new leader leaves out so many serial numbers.
const NUMBERS_LEFT_OUT: u64 = 1 << 32;

impl Server {
    /// Does what is due of the leadership, and asks to be woken.
    pub(crate) fn lead(&mut self, sim: &mut Sim) {
        let now = self.now(sim);
        if now >= self.stuck_until {
            self.leadership.ledger_answered(now);
        }
        self.go_on_draining(sim, now);
        if self.is_stopping && !self.leadership.has_row() {
            self.kill(sim);
            let down = sim.up_to(2_000 * MILLISECOND);
            sim.after(down, Event::StartServer { server: self.index });
            return;
        }
        if let Some(running) = &mut self.running {
            self.leadership.committed(running.fence.sequence());
            if std::mem::take(&mut running.is_in_doubt) {
                self.leadership.renew_soon(now);
            }
        }
        if let Some(request) = self.leadership.poll(now) {
            self.send_election(sim, request);
        }
        self.wake += 1;
        if let Some(at) = self.leadership.poll_timeout() {
            let (server, life, wake) = (self.index, self.life, self.wake);
            let at = self.clock.when(at).max(sim.time + MILLISECOND);
            sim.at(at, Event::Lead { server, life, wake });
        }
        self.notice_leader(sim);
    }

    /// Hands the leadership over once everything is committed.
    fn go_on_draining(&mut self, sim: &mut Sim, now: Duration) {
        let is_committed =
            self.committing.is_none() && self.pending.is_empty() && !self.is_rewriting;
        if self.leadership.term().is_none() || !(self.is_draining || self.is_stopping) {
            self.is_draining = false;
        } else if is_committed {
            // From here on this server is a standby. The successor may be gone.
            let other = sim.members[sim.random.random_range(0..SERVERS)];
            let successor = Some(other).filter(|_| sim.random.random_bool(0.7));
            self.leadership.release_to(successor, now);
            self.end_term(sim);
        } else if now >= self.gives_up_draining && !self.is_stopping {
            self.is_draining = false;
            self.extend_all(sim);
            self.note_extended(sim);
        }
    }

    /// The time that it asked to be woken at has come.
    pub(crate) fn wake(&mut self, sim: &mut Sim, wake: u64) {
        if wake == self.wake {
            self.lead(sim);
        }
    }

    fn send_election(&mut self, sim: &mut Sim, request: Election) {
        self.elections += 1;
        (self.election, self.promotions) = (self.elections, sim.truth.counts.promotions);
        self.sequence = self.running.as_ref().map_or(0, |running| running.fence.sequence());
        self.check_takeover(sim, &request);
        let asker = self.asker(Connection::Elections, self.election);
        let ttl = sim.settings.leader_ttl;
        let within = if matches!(request, Election::TakeOver { .. }) { ttl } else { ttl / 4 };
        let request = match request {
            Election::Rewrite { seen, new } => {
                let Some(content) = self.snapshot(sim) else {
                    let reply = Box::new(Reply::Failed);
                    return sim.after(50 * MILLISECOND, Event::Reply { asker, reply });
                };
                Request::Rewrite { seen, new, content: Rc::new(content) }
            }
            request => Request::Election(request),
        };
        sim.ask(asker, within, request);
        let reply = Box::new(Reply::Failed);
        self.after(sim, within + within / 4, Event::Reply { asker, reply });
    }

    pub(super) fn asker(&self, connection: Connection, number: u64) -> Asker {
        Asker { server: self.index, life: self.life, connection, number }
    }

    /// Everything that the memory of the leader holds.
    fn snapshot(&mut self, sim: &Sim) -> Option<Snapshot> {
        if !self.is_rewriting {
            return None;
        }
        // The leases get their full TTL when the leader acts again: none of them has ended by then.
        self.extend_all(sim);
        self.note_extended(sim);
        let running = self.running.as_ref()?;
        Some(Snapshot {
            changes: self.ledger.snapshot().collect(),
            stamp: self.stamp(),
            may_overwrite: self.may_overwrite,
            memory: self.due.values().map(|due| (due.id, due.lingers)).collect(),
            reader: running.reader.clone(),
        })
    }

    /// The database, or the deadline of the request, has answered.
    pub(crate) fn elected(&mut self, sim: &mut Sim, number: u64, reply: Reply) {
        if self.election != number {
            return;
        }
        self.election = 0;
        let answer = if let Reply::Election(answer) = reply { answer } else { Answer::Failed };
        let now = self.now(sim);
        self.check_answer(&answer, now);
        match self.leadership.handle_answer(answer, now) {
            None => {}
            Some(Turn::Elected(row)) => self.begin_term(sim, row),
            Some(Turn::ValidUntil(until)) => self.extend_term(sim, until),
            Some(Turn::Deposed) => {
                if self.has_noticed {
                    let index = self.index;
                    sim.truth.violate(|| format!("server {index} gives up what the database lost"));
                }
                self.end_term(sim);
            }
            Some(Turn::WritesLost) => {
                self.may_overwrite = self.has_noticed;
                self.suspend_term(sim);
                if let Some(running) = &self.running
                    && running.promotions == sim.truth.counts.promotions
                {
                    sim.truth.violate(|| "a leader misses writes that are not lost".to_owned());
                }
            }
            Some(Turn::Rewritten(row)) => self.go_on_after_rewriting(sim, row),
        }
        self.lead(sim);
    }

    /// Checks that a takeover comes after the whole time for which the row was unchanged, counted anew
    /// from a failure and from a gap.
    fn check_takeover(&self, sim: &mut Sim, request: &Election) {
        let Election::TakeOver { seen, .. } = request else { return };
        let now = self.now(sim);
        let is_due = self.watched.is_due(&seen.leadership, sim.members[self.index], now);
        if !is_due {
            let index = self.index;
            sim.truth.violate(|| format!("server {index} takes over before its time"));
        }
    }

    /// Watches the leadership row, and checks that a leader does not give up what it remembers.
    fn check_answer(&mut self, answer: &Answer, now: Duration) {
        let leads = self.leadership.term().is_some();
        let Some(rows) = self.watched.observe(answer, leads, now) else { return };
        let row = &rows.leadership;
        if let Some(mine) = self.leadership.term() {
            let is_valid = self.leadership.valid_until(now).is_some();
            let is_lost = row.epoch < mine.epoch && is_valid
                || row.leader == mine.leader
                    && !row.released
                    && rows.journal.sequence < self.sequence;
            self.has_noticed = is_lost;
        } else {
            self.has_noticed = false;
        }
    }

    /// Commits nothing more until the journal is written again.
    fn suspend_term(&mut self, sim: &mut Sim) {
        if let Role::Leader { valid_until, .. } = &mut self.role {
            *valid_until = Duration::ZERO;
            self.is_rewriting = true;
        } else {
            // The journal is not read yet, so there is nothing to write.
            self.end_term(sim);
            self.leadership.release(self.now(sim));
        }
    }

    fn begin_term(&mut self, sim: &mut Sim, row: JournalRow) {
        self.running = Some(begin(row, sim.time, self.promotions));
        self.load(sim);
    }

    pub(super) fn load(&mut self, sim: &mut Sim) {
        self.commit += 1;
        let asker = self.asker(Connection::Journal, self.commit);
        sim.ask(asker, Duration::from_secs(10), Request::Load);
        let reply = Box::new(Reply::Failed);
        self.after(sim, Duration::from_secs(10), Event::Reply { asker, reply });
    }

    /// The journal was read, or could not be read.
    pub(super) fn loaded(&mut self, sim: &mut Sim, reply: Reply) {
        let Some(running) = &mut self.running else { return };
        let Reply::Content(content) = reply else {
            return self.wake_journal(sim, LOAD_AGAIN_AFTER);
        };
        let Content { changes, stamp, read_at } = *content;
        (running.journal, running.reader.read_at) = (Journal::Idle, read_at);
        let valid_until = running.valid_until;
        let now = self.now(sim);
        let mut ledger = new_ledger(sim);
        self.due.clear();
        for change in changes {
            if let Change::Granted(lease) = &change {
                let (id, ttl) = (lease.id, lease.ttl);
                let left = lease.lingers_until.map(|until| until.since(stamp.time));
                let lingers = left.is_some();
                let at = self.active + left.unwrap_or(ttl);
                self.due.insert(id.serial(), Due { id, at, ttl, lingers });
            }
            if let Err(error) = ledger.restore(change) {
                sim.truth.violate(|| format!("the journal cannot be restored: {error}"));
            }
        }
        ledger.resume(stamp.time, stamp.next_serial + NUMBERS_LEFT_OUT, stamp.time);
        self.ledger = ledger;
        self.role = Role::Leader { valid_until, serves: false };
        self.time = StoreClock::starting_at(stamp.time, now);
        self.read_at = now;
        self.stamped = stamp.time;
        self.replace_ledger();
        // The overrides are put into force before anything is served.
        let after = sim.random.random_range(0..300 * MILLISECOND);
        let (server, life, term) = (self.index, self.life, self.term);
        sim.after(after, Event::Serve { server, life, term });
    }

    fn replace_ledger(&mut self) {
        self.undelivered.clear();
        self.forwarded.clear();
        self.borrow_ids.clear();
        self.term += 1;
    }

    /// Serves from now on in this term.
    pub(crate) fn serve(&mut self, sim: &mut Sim, term: u64) {
        if self.term == term
            && let Role::Leader { serves: serves @ false, .. } = &mut self.role
        {
            *serves = true;
            self.extend_all(sim);
            self.note_extended(sim);
            sim.truth.counts.terms += 1;
        }
    }

    fn extend_term(&mut self, sim: &mut Sim, until: Duration) {
        let now = self.now(sim);
        if let Some(running) = &mut self.running {
            running.valid_until = until;
        }
        let Role::Leader { valid_until, serves } = self.role else { return };
        if serves && now >= valid_until {
            self.extend_all(sim);
            self.note_extended(sim);
            sim.truth.counts.regained += 1;
        }
        self.role = Role::Leader { valid_until: until, serves };
        if std::mem::take(&mut self.is_rewriting) {
            // Nothing was lost after all.
            self.wake_journal(sim, Duration::ZERO);
        }
    }

    /// The journal was written again from memory: what waited is durable with it.
    fn go_on_after_rewriting(&mut self, sim: &mut Sim, row: JournalRow) {
        self.is_rewriting = false;
        let Some(running) = &mut self.running else { return };
        running.fence = store::fleet::Fence::new(row);
        running.reader.ids.push(row.leader);
        running.promotions = self.promotions;
        running.journal = Journal::Idle;
        self.commit += 1;
        self.pending.clear();
        let waiters = self.committing.take().into_iter().flat_map(|batch| batch.waiters);
        let waiters: Vec<_> = waiters.chain(std::mem::take(&mut self.gathering)).collect();
        self.settle(sim, waiters, true);
    }

    /// Ends the term: an empty ledger takes the place of the ledger.
    pub(super) fn end_term(&mut self, sim: &mut Sim) {
        self.running = None;
        self.commit += 1;
        (self.is_draining, self.is_rewriting) = (false, false);
        self.role = Role::Standby;
        self.pending.clear();
        let waiters = self.committing.take().into_iter().flat_map(|batch| batch.waiters);
        let waiters: Vec<_> = waiters.chain(std::mem::take(&mut self.gathering)).collect();
        self.ledger = new_ledger(sim);
        self.due.clear();
        self.replace_ledger();
        self.settle(sim, waiters, false);
    }
}
