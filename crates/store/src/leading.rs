//! A server in a fleet: the thread that renews its leadership or waits for its turn, and the threads of
//! one term.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use lease::WallTime;

use crate::desk::{Purpose, StepDown};
use crate::fleet::{
    Answer, Config, Event, JournalRow, Leader, Leadership, Member, MemberRole, Request,
    StepDownError, successor,
};
use crate::journal::committer::Committer;
use crate::journal::engine::{Elections, Facts, Unanswered};
use crate::options::Options;
use crate::shared::{Answers, Shared};
use crate::term::Term;

mod handover;
mod load;

use handover::{Handover, Next, Situation};
use load::lead;

/// How often the leadership is looked at when nothing is due.
const TICK: Duration = Duration::from_millis(20);

/// How long the leadership waits for the lock of the ledger.
const LOCK_WITHIN: Duration = Duration::from_millis(20);

/// How long writing the whole journal again may take.
const REWRITE_WITHIN: Duration = Duration::from_secs(120);

/// How often a server writes its row among the members of the fleet.
const MEET_EVERY: Duration = Duration::from_secs(1);

/// The part of a server in a fleet.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) elections: Box<dyn Elections>,
    pub(crate) options: Options,
    pub(crate) config: Config,
}

/// The running term of this server as leader.
struct Running<'scope> {
    term: Arc<Term>,
    thread: ScopedJoinHandle<'scope, ()>,
}

/// What the thread of the leadership works with.
struct Driver<'scope, 'env> {
    leading: Leading,
    shared: &'scope Shared,
    scope: &'scope Scope<'scope, 'env>,
    leadership: Leadership,
    running: Option<Running<'scope>>,
    handover: Option<Handover>,
    members: Vec<Member>,
    /// When the members were read.
    members_read: Duration,
    next_meeting: Duration,
    meeting_failed: bool,
    /// The role that the members know, and since when this server has it.
    role: (MemberRole, WallTime),
    /// The epoch of the last term.
    led: Option<u64>,
    /// Whether this server takes nothing over any more.
    is_stopping: bool,
    /// How long the leader that the database showed last counts as known.
    leader_known_until: Duration,
}

impl Leading {
    /// Runs until the store has closed and the leadership is released.
    pub(crate) fn run(self, shared: &Shared) {
        let now = shared.clock.boot();
        std::thread::scope(|scope| {
            let mut driver = Driver {
                leadership: Leadership::new(self.config.clone(), now),
                leading: self,
                shared,
                scope,
                running: None,
                handover: None,
                members: Vec::new(),
                members_read: Duration::ZERO,
                next_meeting: now,
                meeting_failed: false,
                role: (MemberRole::Standby, shared.clock.wall()),
                led: None,
                is_stopping: false,
                leader_known_until: Duration::ZERO,
            };
            while driver.step() {}
            driver.leave();
        });
    }
}

impl Driver<'_, '_> {
    fn now(&self) -> Duration {
        self.shared.clock.boot()
    }

    /// Does what is due. Returns whether there is more to come.
    fn step(&mut self) -> bool {
        let due = self.leadership.poll_timeout();
        let wait = due.map_or(TICK, |at| at.saturating_sub(self.now()));
        if self.shared.wait_for_closing(wait.min(TICK)) {
            self.stop();
            // The last batches are committed first.
            let commits = self.running.as_ref().is_some_and(|it| !it.thread.is_finished());
            if !commits {
                if self.leadership.term().is_some() {
                    let (now, successor) = (self.now(), self.any_successor());
                    self.leadership.release_to(successor, now);
                    self.end_term();
                }
                if !self.leadership.has_row() {
                    return false;
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.look_at_the_ledger();
        self.begin_handovers();
        self.go_on_with_handover();
        let now = self.now();
        let Some(request) = self.leadership.poll(now) else {
            self.meet_if_due();
            return true;
        };
        let answer = self.carry_out(&request);
        let event = self.leadership.handle_answer(answer, self.now());
        self.publish_leader();
        self.handle(event);
        true
    }

    /// Tells the server above who leads. While the database does not answer, that is the leader that it
    /// showed last, for one leader-ttl: so long that one may act.
    fn publish_leader(&mut self) {
        let (row, is_self) = match self.leadership.term() {
            Some(row) => (Some(row), true),
            None => (self.leadership.leader(), false),
        };
        let leader = row.map(|row| Leader {
            epoch: row.epoch,
            id: row.leader,
            address: (&*row.address).into(),
            is_self,
        });
        let now = self.now();
        if leader.is_some() {
            self.leader_known_until = now + self.leading.config.leader_ttl;
        } else if self.leadership.has_failed_to_read() && now < self.leader_known_until {
            return;
        }
        self.shared.leader.send_if_modified(|known| {
            let is_new = *known != leader;
            if is_new {
                *known = leader;
            }
            is_new
        });
    }

    fn look_at_the_ledger(&mut self) {
        let now = self.now();
        match self.shared.answers(LOCK_WITHIN) {
            Answers::Yes => self.leadership.ledger_answered(now),
            Answers::No => {}
            Answers::Poisoned => {
                // Another server leads from now on, and this process ends.
                self.stop();
                if self.leadership.term().is_some() {
                    self.leadership.release(now);
                    self.end_term();
                }
                if !self.leadership.has_row() {
                    self.shared.desk.is_useless.send_replace(true);
                }
            }
        }
        if let Some(Running { term, .. }) = &self.running {
            if let Some(sequence) = term.sequence() {
                self.leadership.committed(sequence);
            }
            if term.take_doubt() {
                self.leadership.renew_soon(now);
            }
        }
    }

    /// Takes nothing over from now on, and tells the others.
    fn stop(&mut self) {
        self.leadership.set_candidate(false);
        if !self.is_stopping {
            self.is_stopping = true;
            self.next_meeting = self.now();
        }
    }

    fn handle(&mut self, event: Option<Event>) {
        match event {
            None => {}
            Some(Event::Elected(row)) => {
                tracing::info!(sequence = row.sequence, "leads the fleet");
                self.note_term();
                self.running = Some(self.begin_term(row));
            }
            Some(Event::ValidUntil(until)) => {
                if let Some(Running { term, .. }) = &self.running {
                    term.extend(until);
                    term.resume();
                }
                self.shared.extend_term(until);
            }
            Some(Event::Deposed) => {
                tracing::warn!("another server leads the fleet");
                self.end_term();
            }
            Some(Event::WritesLost) => self.suspend_term(),
            Some(Event::Rewritten(row)) => self.resume_term(row),
        }
    }

    /// The term has another row, or is a new one.
    fn note_term(&mut self) {
        self.led = self.leadership.term().map(|row| row.epoch);
        self.next_meeting = self.now();
    }

    /// Commits nothing more until the journal is written again.
    fn suspend_term(&mut self) {
        tracing::error!(
            "the database has lost changes that were acknowledged: they are written again"
        );
        match &self.running {
            Some(Running { term, .. }) if self.shared.suspend_term() => term.suspend(),
            _ => {
                // This server has not read the journal yet, so it has nothing to write.
                self.end_term();
                self.leadership.release(self.now());
            }
        }
    }

    fn resume_term(&mut self, row: JournalRow) {
        tracing::warn!(sequence = row.sequence, "the journal is written again from memory");
        let Some(Running { term, .. }) = &self.running else { return };
        self.shared.rewritten(|batches| term.rewritten(row, batches));
        self.note_term();
    }

    fn carry_out(&mut self, request: &Request) -> Answer {
        // A takeover may have to wait for a lock.
        let ttl = self.leading.config.leader_ttl;
        let elections = &mut self.leading.elections;
        let answer = match request {
            Request::TakeOver { .. } => elections.carry_out(request, ttl),
            Request::Read | Request::Replace { .. } => elections.carry_out(request, ttl / 4),
            Request::Rewrite { seen, new } => match self.shared.snapshot() {
                Some(snapshot) => elections.rewrite(seen, new, snapshot, REWRITE_WITHIN),
                None => return Answer::Failed,
            },
        };
        answer.unwrap_or_else(|error| {
            tracing::warn!(%error, "the database of the fleet does not answer");
            if matches!(error, Unanswered::Full(_)) {
                self.shared.database_is_full();
            }
            Answer::Failed
        })
    }

    /// Begins what operators have asked for.
    fn begin_handovers(&mut self) {
        for StepDown { force, purpose, reply } in self.shared.desk.take_requests() {
            if purpose == Purpose::Retire {
                self.stop();
            }
            match self.prepare_handover(force, purpose) {
                Ok(successor) if purpose == Purpose::Plan => drop(reply.send(Ok(successor))),
                Ok(successor) => {
                    let give_up_at = self.now() + self.leading.config.leader_ttl;
                    tracing::info!(to = &*successor.address, "hands the leadership over");
                    let is_released = false;
                    self.handover = Some(Handover { successor, give_up_at, is_released, reply });
                }
                Err(error) => drop(reply.send(Err(error))),
            }
        }
    }

    /// Chooses the successor, and makes no more changes, unless it is only a plan. After an error nothing
    /// has changed.
    fn prepare_handover(&mut self, force: bool, purpose: Purpose) -> Result<Member, StepDownError> {
        if self.handover.is_some() {
            return Err(StepDownError::UnderWay);
        }
        if self.leadership.term().is_none() {
            return Err(StepDownError::NotLeader);
        }
        self.meet(self.leading.config.leader_ttl / 4).map_err(|error| {
            tracing::warn!(%error, "the members of the fleet cannot be read");
            StepDownError::NoAnswer
        })?;
        let (own, policy_hash) = (self.leading.config.member, self.shared.desk.policy_hash());
        let chosen = successor(&self.members, own, &policy_hash, force, Duration::ZERO)?.clone();
        let is_ready = purpose == Purpose::Plan || self.shared.stop_applying();
        if is_ready { Ok(chosen) } else { Err(StepDownError::NotLeader) }
    }

    /// Releases the leadership once everything is committed.
    fn go_on_with_handover(&mut self) {
        let Some(mut handover) = self.handover.take() else { return };
        let now = self.now();
        let situation = Situation {
            leads: self.leadership.term().is_some(),
            has_row: self.leadership.has_row(),
            has_committed_all: self.shared.has_committed_all(),
        };
        match handover.next(now, situation) {
            Next::Wait => {}
            Next::Release => {
                self.leadership.release_to(Some(handover.successor.id), now);
                self.end_term();
                handover.is_released = true;
            }
            Next::GoOn => {
                self.shared.apply_again();
                return handover.end(Err(StepDownError::Unconfirmed));
            }
            Next::End(outcome) => return handover.end(outcome),
        }
        self.handover = Some(handover);
    }

    /// Writes the row of this server among the members, when that delays no renewal.
    fn meet_if_due(&mut self) {
        let (now, within) = (self.now(), self.leading.config.leader_ttl / 8);
        let renews_at = self.leadership.poll_timeout().filter(|_| self.leadership.has_row());
        let is_free = renews_at.is_none_or(|at| at >= now + within);
        if self.next_meeting > now || !is_free {
            return;
        }
        match self.meet(within) {
            Ok(()) => self.meeting_failed = false,
            Err(error) => {
                if !std::mem::replace(&mut self.meeting_failed, true) {
                    tracing::warn!(%error, "the members of the fleet cannot be read");
                }
            }
        }
    }

    fn meet(&mut self, within: Duration) -> Result<(), Unanswered> {
        let now = self.now();
        self.next_meeting = now + MEET_EVERY;
        let role = match self.leadership.term() {
            Some(_) => MemberRole::Leader,
            None if self.is_stopping => MemberRole::Stopping,
            None => MemberRole::Standby,
        };
        if self.role.0 != role {
            self.role = (role, self.shared.clock.wall());
        }
        let facts = Facts {
            id: self.leading.config.member,
            address: &self.leading.config.address,
            policy_hash: &self.shared.desk.policy_hash(),
            role,
            role_since: self.role.1,
            led: self.led,
        };
        let meeting = self.leading.elections.meet(&facts, within)?;
        (self.members, self.members_read) = (meeting.members, now);
        self.shared.desk.set_members(self.members.clone());
        let newest = self.leading.elections.newest_version();
        if meeting.tables > newest && !self.is_stopping {
            tracing::error!(
                "the tables of the store have a later version: this server leads no more"
            );
            self.stop();
        }
        if meeting.tables < newest
            && let Some(row) = self.leadership.term()
        {
            self.leading.elections.migrate(row.leader, within)?;
        }
        Ok(())
    }

    /// Any server that can take over, as far as this one knows.
    fn any_successor(&self) -> Option<crate::fleet::MemberId> {
        let age = self.now().saturating_sub(self.members_read);
        let policy_hash = self.shared.desk.policy_hash();
        let own = self.leading.config.member;
        successor(&self.members, own, &policy_hash, true, age).ok().map(|member| member.id)
    }

    /// Removes the row of this server from the members.
    fn leave(&mut self) {
        let within = self.leading.config.leader_ttl / 4;
        if let Err(error) = self.leading.elections.leave(self.leading.config.member, within) {
            tracing::debug!(%error, "the row of this server stays for a minute");
        }
    }
}

impl<'scope> Driver<'scope, '_> {
    /// Starts the thread that reads the journal, and then commits for this term.
    fn begin_term(&self, row: JournalRow) -> Running<'scope> {
        let term = Arc::<Term>::default();
        let (shared, own) = (self.shared, term.clone());
        let (connection, options) =
            (self.leading.elections.journal(), self.leading.options.clone());
        let within = self.leading.config.leader_ttl / 2;
        let thread = self.scope.spawn(move || {
            let began =
                connection.and_then(|connection| lead(shared, connection, &options, row, &own));
            let began = match began {
                Ok(Some(began)) => began,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "cannot lead");
                    return;
                }
            };
            let (journal, number) = began;
            shared.run_journal(Box::new(Committer::new(journal, own, within)), number);
        });
        Running { term, thread }
    }

    fn end_term(&mut self) {
        if let Some(Running { term, .. }) = self.running.take() {
            term.end();
        }
        self.next_meeting = self.now();
        match self.leading.options.nothing_restored(true) {
            Ok(empty) => self.shared.stand_by(empty),
            Err(error) => {
                tracing::error!(%error, "cannot stand by");
                self.shared.fail(crate::Unavailable::Failed);
            }
        }
    }
}

impl Drop for Driver<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if let Some(Running { term, .. }) = &self.running {
                term.end();
            }
            self.shared.desk.is_useless.send_replace(true);
        }
    }
}

#[cfg(test)]
mod tests;
