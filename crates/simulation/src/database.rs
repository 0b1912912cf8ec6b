//! One database: two rows, the journal, row locks, and a history that a promotion cuts off.

use std::collections::VecDeque;
use std::time::Duration;

use lease::Timestamp;
use store::fleet::{self, JournalRow, LeaderId, LeadershipRow, Rows};

use crate::clock::{MILLISECOND, SECOND, nanos};
use crate::event::Event;
use crate::message::{Asker, Content, Reply, Request, Snapshot, Stamp};
use crate::sim::Sim;
use crate::tables::{Tables, Undo};

/// How many commits a promotion can lose at most.
const HISTORY: usize = 48;

/// One commit of the history.
#[derive(Debug)]
struct Commit {
    rows: Rows,
    stamp: Stamp,
    committed_by: Option<(u64, LeaderId)>,
    undo: Vec<Undo>,
    /// The term that it began.
    term: Option<LeaderId>,
}

/// A transaction that holds or waits for locks.
#[derive(Debug)]
struct Transaction {
    number: u64,
    asker: Asker,
    request: Request,
}

/// The locks that a request needs: of the leadership row, and of the journal row.
fn locks(request: &Request) -> (bool, bool) {
    match request {
        Request::Election(fleet::Request::Replace { .. }) => (true, false),
        Request::Election(_) | Request::Rewrite { .. } => (true, true),
        Request::Commit { .. } | Request::Resolve { .. } => (false, true),
        Request::Load => (false, false),
    }
}

#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) rows: Rows,
    stamp: Stamp,
    tables: Tables,
    position: u64,
    history: VecDeque<Commit>,
    /// The last epoch in which a batch was committed, and by whom.
    committed_by: Option<(u64, LeaderId)>,
    pub(crate) is_up: bool,
    transactions: u64,
    holding: Vec<Transaction>,
    waiting: VecDeque<Transaction>,
}

impl Database {
    pub(crate) fn new(leader_ttl: Duration) -> Self {
        Self {
            rows: Rows::new(leader_ttl),
            stamp: Stamp { time: Timestamp::ZERO, next_serial: 1 },
            tables: Tables::default(),
            position: 0,
            history: VecDeque::new(),
            committed_by: None,
            is_up: true,
            transactions: 0,
            holding: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// A request arrives.
    pub(crate) fn arrive(
        &mut self,
        sim: &mut Sim,
        asker: Asker,
        incarnation: u32,
        within: Duration,
        request: Request,
    ) {
        if !self.is_up || incarnation != sim.incarnation {
            // Mostly a refused connection, and now and then silence.
            if sim.chance(0.7) {
                sim.reply(asker, Reply::Failed);
            }
            return;
        }
        match request {
            Request::Election(fleet::Request::Read) => {
                sim.reply(asker, Reply::Election(fleet::Answer::Read(self.rows.clone())));
            }
            Request::Load => {
                sim.truth.read(self.tables.leases.values().map(|lease| lease.id));
                let (stamp, read_at) = (self.stamp, sim.time);
                let changes = self.tables.content(stamp.time);
                let content = Box::new(Content { changes, stamp, read_at });
                sim.reply(asker, Reply::Content(content));
            }
            request => {
                if let Request::Election(fleet::Request::TakeOver { end_blocker: true, .. }) =
                    request
                {
                    self.end_all(sim);
                }
                self.transactions += 1;
                let transaction = Transaction { number: self.transactions, asker, request };
                if let Some(waits) = self.begin(sim, transaction) {
                    sim.after(nanos(within), Event::LockTimeout { number: waits.number });
                    self.waiting.push_back(waits);
                }
            }
        }
    }

    /// Begins a transaction, or returns it if it has to wait for a lock.
    fn begin(&mut self, sim: &mut Sim, transaction: Transaction) -> Option<Transaction> {
        let (leadership, journal) = locks(&transaction.request);
        let is_blocked = self.holding.iter().any(|other| {
            let (l, j) = locks(&other.request);
            l && leadership || j && journal
        });
        if is_blocked {
            return Some(transaction);
        }
        let Transaction { number, asker, request } = &transaction;
        if let Some(differs) = self.compare(request) {
            sim.reply(*asker, differs);
            return None;
        }
        // The client is slow or stopped in the middle, or a replica has to confirm.
        let hold = match request {
            _ if sim.mishap(0.005) => sim.up_to(15 * SECOND),
            _ if sim.mishap(0.03) => sim.up_to(500 * MILLISECOND),
            _ => 0,
        };
        if hold == 0 {
            let reply = self.carry_out(sim, &transaction.request);
            sim.reply(transaction.asker, reply);
        } else {
            sim.after(hold, Event::EndTransaction { number: *number });
            self.holding.push(transaction);
        }
        None
    }

    /// The reply to a request that does not find the rows that it expects.
    fn compare(&self, request: &Request) -> Option<Reply> {
        let (leadership, journal) = (&self.rows.leadership, &self.rows.journal);
        let differ = || Some(Reply::Election(fleet::Answer::Differ(self.rows.clone())));
        match request {
            Request::Election(fleet::Request::Replace { seen, .. }) => {
                if is_same_leadership(seen, leadership) { None } else { differ() }
            }
            Request::Election(
                fleet::Request::TakeOver { seen, .. } | fleet::Request::Rewrite { seen, .. },
            )
            | Request::Rewrite { seen, .. } => {
                let is_same = is_same_leadership(&seen.leadership, leadership)
                    && is_same_journal(&seen.journal, journal);
                if is_same { None } else { differ() }
            }
            Request::Commit { seen, .. } => {
                (!can_commit(seen, journal)).then_some(Reply::Committed(false))
            }
            Request::Resolve { leader } => {
                (journal.leader != *leader).then_some(Reply::Row(*journal))
            }
            Request::Election(fleet::Request::Read) | Request::Load => None,
        }
    }

    /// Carries out a request that has its locks and found what it expects.
    fn carry_out(&mut self, sim: &mut Sim, request: &Request) -> Reply {
        let mut commit = Commit {
            rows: self.rows.clone(),
            stamp: self.stamp,
            committed_by: self.committed_by,
            undo: Vec::new(),
            term: None,
        };
        self.position += 1;
        let reply = match request {
            Request::Election(fleet::Request::Replace { new, .. }) => {
                self.rows.leadership = new.clone();
                Reply::Election(fleet::Answer::Replaced(self.rows.clone()))
            }
            Request::Election(fleet::Request::TakeOver { new, .. }) => {
                let (before, after) = (self.rows.journal.sequence, new.journal.sequence);
                if before != after {
                    sim.truth.violate(|| {
                        format!("a takeover set the sequence from {before} to {after}")
                    });
                }
                commit.term = Some(new.leadership.leader);
                self.rows = new.clone();
                Reply::Election(fleet::Answer::Replaced(self.rows.clone()))
            }
            Request::Rewrite { new, content, .. } => {
                commit.term = Some(new.leadership.leader);
                let before = self.rows.leadership.leader;
                self.rows = new.clone();
                let tables = std::mem::take(&mut self.tables);
                commit.undo.push(Undo::All(Box::new(tables)));
                for change in &content.changes {
                    self.tables.apply(change, &mut Vec::new());
                }
                self.stamp = content.stamp;
                let Snapshot { memory, reader, may_overwrite, .. } = &**content;
                sim.truth.rewritten(
                    (reader, *may_overwrite),
                    before,
                    memory,
                    self.position,
                    sim.time,
                );
                Reply::Election(fleet::Answer::Replaced(self.rows.clone()))
            }
            Request::Commit { seen, new, changes, stamp } => {
                self.check_commit(sim, seen, new);
                self.rows.journal = *new;
                self.stamp = *stamp;
                for change in &**changes {
                    self.tables.apply(change, &mut commit.undo);
                }
                self.tables.forget(stamp.time, &mut commit.undo);
                sim.truth.committed(changes, self.position, sim.time);
                Reply::Committed(true)
            }
            Request::Resolve { .. } => {
                self.rows.journal.attempt += 1;
                Reply::Row(self.rows.journal)
            }
            Request::Election(_) | Request::Load => Reply::Failed,
        };
        self.history.push_back(commit);
        if self.history.len() > HISTORY {
            self.history.pop_front();
        }
        reply
    }

    fn check_commit(&mut self, sim: &mut Sim, seen: &JournalRow, new: &JournalRow) {
        let Rows { leadership: LeadershipRow { epoch, leader, .. }, journal } = &self.rows;
        let (epoch, leader) = (*epoch, *leader);
        if new.leader != leader {
            sim.truth.violate(|| format!("{} commits in the term of {leader}", new.leader));
        }
        if seen.attempt != journal.attempt {
            sim.truth.violate(|| "an earlier attempt commits after it was resolved".to_owned());
        }
        if new.sequence != journal.sequence + 1 {
            let (before, after) = (journal.sequence, new.sequence);
            sim.truth.violate(|| format!("batch {after} was committed after batch {before}"));
        }
        if let Some((last, by)) = self.committed_by
            && (last > epoch || last == epoch && by != leader)
        {
            sim.truth.violate(|| {
                format!("{by} and {leader} committed in the epochs {last} and {epoch}")
            });
        }
        self.committed_by = Some((epoch, leader));
    }

    // ---- locks ----

    /// A transaction that held its locks for a while commits.
    pub(crate) fn end_transaction(&mut self, sim: &mut Sim, number: u64) {
        let Some(place) = self.holding.iter().position(|it| it.number == number) else { return };
        let Transaction { asker, request, .. } = self.holding.remove(place);
        let reply = self.carry_out(sim, &request);
        sim.reply(asker, reply);
        self.go_on(sim);
    }

    /// A transaction has waited for a lock too long.
    pub(crate) fn lock_timeout(&mut self, sim: &mut Sim, number: u64) {
        let Some(place) = self.waiting.iter().position(|it| it.number == number) else { return };
        if let Some(Transaction { asker, request, .. }) = self.waiting.remove(place) {
            sim.truth.counts.blocked += 1;
            let is_election = matches!(request, Request::Election(_) | Request::Rewrite { .. });
            sim.reply(
                asker,
                if is_election { Reply::Election(fleet::Answer::Blocked) } else { Reply::Failed },
            );
        }
    }

    /// Lets those that wait for locks go on.
    fn go_on(&mut self, sim: &mut Sim) {
        for transaction in std::mem::take(&mut self.waiting) {
            if let Some(waits) = self.begin(sim, transaction) {
                self.waiting.push_back(waits);
            }
        }
    }

    /// Ends every transaction that holds a lock. One that waited for a replica is committed all the same.
    fn end_all(&mut self, sim: &mut Sim) {
        for Transaction { asker, request, .. } in std::mem::take(&mut self.holding) {
            if sim.chance(0.5) {
                self.carry_out(sim, &request);
            }
            sim.reply(asker, Reply::Failed);
        }
        self.go_on(sim);
    }

    // ---- faults ----

    /// The database stops. What is under way is rolled back, and connections break.
    pub(crate) fn stop(&mut self, sim: &mut Sim) {
        self.is_up = false;
        sim.incarnation += 1;
        self.holding.clear();
        self.waiting.clear();
    }

    /// A stale replica takes the place of the primary: the last commits are lost.
    pub(crate) fn lose(&mut self, sim: &mut Sim, commits: usize) {
        let mut terms = Vec::new();
        for _ in 0..commits {
            let Some(Commit { rows, stamp, committed_by, undo, term }) = self.history.pop_back()
            else {
                break;
            };
            (self.rows, self.stamp, self.committed_by) = (rows, stamp, committed_by);
            self.position -= 1;
            terms.extend(term);
            for undo in undo.into_iter().rev() {
                self.tables.undo(undo);
            }
        }
        sim.truth.go_back(self.position, terms);
    }
}

/// Compares the leadership row as a whole.
fn is_same_leadership(seen: &LeadershipRow, row: &LeadershipRow) -> bool {
    seen.epoch == row.epoch
        && seen.leader == row.leader
        && seen.renewals == row.renewals
        && seen.leader_ttl == row.leader_ttl
        && seen.address == row.address
        && seen.released == row.released
        && seen.successor == row.successor
}

/// Compares the journal row as a whole, for a takeover.
fn is_same_journal(seen: &JournalRow, row: &JournalRow) -> bool {
    seen.leader == row.leader && seen.sequence == row.sequence && seen.attempt == row.attempt
}

/// Compares the journal row with what a commit expects.
fn can_commit(seen: &JournalRow, row: &JournalRow) -> bool {
    seen.leader == row.leader && seen.sequence == row.sequence && seen.attempt == row.attempt
}
