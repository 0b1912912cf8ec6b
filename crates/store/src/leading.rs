//! A server in a fleet: the thread that renews its leadership or waits for its turn, and the threads of
//! one term.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crate::error::Error;
use crate::fleet::{Answer, Config, Event, JournalRow, Leader, Leadership, Request};
use crate::journal::Restored;
use crate::journal::postgres::{Committer, PostgresElections, PostgresJournal, Settings};
use crate::options::Options;
use crate::shared::{Answers, Shared};
use crate::term::Term;

/// How often the leadership is looked at when nothing is due.
const TICK: Duration = Duration::from_millis(20);

/// How long the leadership waits for the lock of the ledger.
const LOCK_WITHIN: Duration = Duration::from_millis(20);

/// How long reading the whole journal may take.
const LOAD_WITHIN: Duration = Duration::from_secs(120);

/// How long a new leader waits before it reads the journal again after a failure.
const LOAD_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The part of a server in a fleet.
#[derive(Debug)]
pub(crate) struct Leading {
    pub(crate) settings: Settings,
    pub(crate) elections: PostgresElections,
    pub(crate) options: Options,
    pub(crate) config: Config,
}

/// The running term of this server as leader.
struct Running<'scope> {
    term: Arc<Term>,
    thread: ScopedJoinHandle<'scope, ()>,
}

impl Leading {
    /// Runs until the store has closed and the leadership is released.
    pub(crate) fn run(mut self, shared: &Shared) {
        let mut leadership = Leadership::new(self.config.clone(), shared.clock.boot());
        std::thread::scope(|scope| {
            let mut running: Option<Running<'_>> = None;
            loop {
                let now = shared.clock.boot();
                let wait = leadership.poll_timeout().map_or(TICK, |at| at.saturating_sub(now));
                if shared.wait_for_closing(wait.min(TICK)) {
                    leadership.set_candidate(false);
                    // The last batches are committed first.
                    let commits = running.as_ref().is_some_and(|it| !it.thread.is_finished());
                    if !commits {
                        leadership.release(shared.clock.boot());
                        if !leadership.has_row() {
                            return;
                        }
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                let now = shared.clock.boot();
                match shared.answers(LOCK_WITHIN) {
                    Answers::Yes => leadership.ledger_answered(now),
                    Answers::No => {}
                    Answers::Poisoned => leadership.release(now),
                }
                if let Some(Running { term, .. }) = &running {
                    leadership.committed(term.sequence());
                    if term.take_doubt() {
                        leadership.renew_soon(now);
                    }
                }
                let Some(request) = leadership.poll(now) else { continue };
                let answer = self.carry_out(&request);
                let event = leadership.handle_answer(answer, shared.clock.boot());
                publish_leader(shared, &leadership);
                match event {
                    None => {}
                    Some(Event::Elected(row)) => {
                        tracing::info!(sequence = row.sequence, "leads the fleet");
                        running = Some(self.begin_term(scope, shared, row));
                    }
                    Some(Event::ValidUntil(until)) => {
                        if let Some(Running { term, .. }) = &running {
                            term.extend(until);
                        }
                        shared.extend_term(until);
                    }
                    Some(Event::Deposed) => {
                        tracing::warn!("another server leads the fleet");
                        self.end_term(shared, running.take());
                    }
                    Some(Event::WritesLost | Event::Rewritten(_)) => {
                        tracing::error!("the database has lost changes that were acknowledged");
                        self.end_term(shared, running.take());
                        leadership.release(shared.clock.boot());
                    }
                }
            }
        });
    }

    fn carry_out(&mut self, request: &Request) -> Answer {
        // A takeover may have to wait for a lock.
        let ttl = self.config.leader_ttl;
        let within = if matches!(request, Request::TakeOver { .. }) { ttl } else { ttl / 4 };
        self.elections.carry_out(request, within).unwrap_or_else(|error| {
            tracing::warn!(%error, "the database of the fleet does not answer");
            Answer::Failed
        })
    }

    /// Starts the thread that reads the journal, and then commits for this term.
    fn begin_term<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        shared: &'scope Shared,
        row: JournalRow,
    ) -> Running<'scope> {
        let term = Arc::<Term>::default();
        let own = term.clone();
        let (settings, options) = (self.settings.clone(), self.options.clone());
        let within = self.config.leader_ttl / 2;
        let thread = scope.spawn(move || {
            let began = match lead(shared, settings, &options, row, &own) {
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

    fn end_term(&self, shared: &Shared, running: Option<Running<'_>>) {
        if let Some(Running { term, .. }) = running {
            term.end();
        }
        match self.options.nothing_restored(true) {
            Ok(empty) => shared.stand_by(empty),
            Err(error) => {
                tracing::error!(%error, "cannot stand by");
                shared.fail(crate::Unavailable::Failed);
            }
        }
    }
}

/// Tells the servers above who leads.
fn publish_leader(shared: &Shared, leadership: &Leadership) {
    let (row, is_self) = match leadership.term() {
        Some(row) => (Some(row), true),
        None => (leadership.leader(), false),
    };
    let leader = row.map(|row| Leader {
        epoch: row.epoch,
        id: row.leader,
        address: row.address.clone(),
        is_self,
    });
    shared.leader.send_if_modified(|now| {
        let is_new = *now != leader;
        if is_new {
            *now = leader;
        }
        is_new
    });
}

/// Reads the journal until that succeeds, and begins the term. Returns `None` when the term is over.
fn lead(
    shared: &Shared,
    settings: Settings,
    options: &Options,
    row: JournalRow,
    term: &Term,
) -> Result<Option<(PostgresJournal, u64)>, Error> {
    let mut journal = PostgresJournal::new(settings, row)?;
    while !term.is_over() {
        let mut restored: Restored = options.nothing_restored(true)?;
        match journal.load(&mut restored, LOAD_WITHIN) {
            Ok(stamp) => {
                let leases = restored.ledger.len();
                let number = shared.lead(restored, stamp, term);
                tracing::info!(leases, "serves as the leader of the fleet");
                return Ok(number.map(|number| (journal, number)));
            }
            Err(error) => {
                tracing::warn!(%error, "the journal cannot be read");
                if shared.wait_for_closing(LOAD_AGAIN_AFTER) {
                    return Ok(None);
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
