//! Who leads, as a state machine without I/O.
//!
//! A server drives it: it sends what [`Leadership::poll`] returns, calls [`Leadership::handle_answer`]
//! with each answer, and polls again at [`Leadership::poll_timeout`]. One request is in flight at a time.
//!
//! A term is safe because of three rules. A leader acts for one leader-ttl from the *sending* of its
//! last successful renewal. A standby waits for one leader-ttl and a tenth from the *arrival* of the
//! answer that first showed the row as it is. A takeover compares both rows as a whole, so nothing
//! happened since. The tenth is there for clocks that run at different rates.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::history::History;
use super::rows::{JournalRow, LeaderId, LeadershipRow, MemberId, Rows};

/// A leader renews this many times in each leader-ttl.
const RENEWALS_PER_TTL: u32 = 5;

/// A standby reads, and a request that failed is sent again, this many times in each leader-ttl, and at
/// least so often: calls are held for two seconds while a planned change goes from one server to another.
const READS_PER_TTL: u32 = 20;
const LONGEST_READ_INTERVAL: Duration = Duration::from_millis(250);

/// A leader does not renew when its ledger has not answered for this long.
const LEDGER_WITHIN: Duration = Duration::from_secs(1);

/// The configuration of one server's part.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a renewal is valid while this server leads. The driver of a fleet uses 5 s.
    pub leader_ttl: Duration,
    /// Where the other servers reach this one.
    pub address: Box<str>,
    /// The id of this server. A leader that hands over names its successor by it.
    pub member: MemberId,
    /// The source of the random leader ids.
    pub seed: [u8; 32],
}

/// A request to the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read both rows in one snapshot.
    Read,
    /// Replace the leadership row if it equals `seen`. The journal row is only read.
    Replace {
        /// What the row must be.
        seen: LeadershipRow,
        /// What it becomes.
        new: LeadershipRow,
    },
    /// Replace both rows if both equal `seen`.
    TakeOver {
        /// What the rows must be.
        seen: Rows,
        /// What they become.
        new: Rows,
        /// An earlier takeover was blocked by a lock for one leader-ttl: first end who holds it.
        end_blocker: bool,
    },
    /// Replace both rows, and the whole content of the journal by that of the ledger, if both rows
    /// equal `seen`. The database has lost writes of this leader.
    Rewrite {
        /// What the rows must be.
        seen: Rows,
        /// What they become.
        new: Rows,
    },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The rows as they are: the answer to [`Request::Read`].
    Read(Rows),
    /// The rows were replaced, and are now these.
    Replaced(Rows),
    /// Nothing was replaced, because the rows are these.
    Differ(Rows),
    /// Nothing was replaced: a lock was held for one leader-ttl.
    Blocked,
    /// There was no answer in time, or an error. Whether anything was replaced is unknown.
    Failed,
}

/// A change that the server carries out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This server leads from now on, and may act from the first [`Event::ValidUntil`]. It reads the
    /// journal, whose fence starts at this row, and gives every lease its full TTL when it begins to
    /// serve.
    Elected(JournalRow),
    /// The leader may act until this time. If it could not act just before, it first gives every lease
    /// its full TTL.
    ValidUntil(Duration),
    /// The database has lost writes: the leader acts no more until the next [`Event::ValidUntil`].
    WritesLost,
    /// The journal was written again from memory, in a new term. Its fence goes on from this row.
    Rewritten(JournalRow),
    /// This server leads no more. Its ledger is worthless.
    Deposed,
}

/// One server's view of who leads.
#[derive(Debug)]
pub struct Leadership {
    config: Config,
    random: ChaCha8Rng,
    /// The id of the next takeover or rewriting. It changes when it was used with success.
    next_id: LeaderId,
    is_candidate: bool,
    /// The terms that this server has seen.
    history: History,
    role: Role,
    in_flight: Option<InFlight>,
}

#[derive(Debug)]
enum Role {
    Standby(Standby),
    Leader(Leader),
    /// The release was not acknowledged yet. This server acts as a standby.
    Releasing {
        row: LeadershipRow,
        successor: Option<MemberId>,
        give_up_at: Duration,
        next_try: Duration,
    },
}

#[derive(Debug)]
struct Standby {
    /// What the last answer showed; `None` after a failed read.
    seen: Option<Seen>,
    next_read: Duration,
    end_blocker: bool,
    /// The term that this server has released: it does not take that row back at once.
    released: Option<LeaderId>,
    member: MemberId,
}

#[derive(Debug)]
struct Seen {
    rows: Rows,
    is_stale: bool,
    /// When the first answer that showed this leadership row arrived.
    since: Duration,
    last_answer: Duration,
}

#[derive(Debug)]
struct Leader {
    row: LeadershipRow,
    /// The highest batch that is known to be committed.
    sequence: u64,
    valid_until: Duration,
    ledger_answered: Duration,
    next_renewal: Duration,
    /// The rows of a database that has lost writes of this leader.
    lost: Option<Rows>,
}

#[derive(Debug)]
struct InFlight {
    request: Request,
    sent: Duration,
    /// The batch that was known to be committed then: the rows in the answer may be older than what
    /// was committed since.
    sequence: u64,
}

/// What rows mean for a leader.
enum Judged {
    Mine,
    WritesLost,
    Deposed,
}

impl Standby {
    fn new(member: MemberId, now: Duration) -> Self {
        Self { seen: None, next_read: now, end_blocker: false, released: None, member }
    }

    /// Notes what an answer showed. The count of an unchanged row starts anew where it changed, and
    /// where answers were missing. A row that `is_stale` is one of a database that has lost a takeover.
    fn observe(&mut self, rows: Rows, is_stale: bool, now: Duration) {
        self.next_read = now + read_interval(rows.leadership.leader_ttl);
        let since = match &self.seen {
            Some(seen)
                if seen.rows.leadership == rows.leadership
                    && now.saturating_sub(seen.last_answer) <= seen.longest_gap() =>
            {
                seen.since
            }
            _ => now,
        };
        self.seen = Some(Seen { rows, is_stale, since, last_answer: now });
    }

    /// When the row may be taken over, if nothing changes.
    fn takeover_at(&self) -> Option<Duration> {
        let seen = self.seen.as_ref()?;
        let row = &seen.rows.leadership;
        let is_mine = row.successor.is_none_or(|successor| successor == self.member);
        // The leader whose takeover was lost may live: it comes first.
        let at_once =
            row.released && is_mine && self.released != Some(row.leader) && !seen.is_stale;
        Some(if at_once { seen.since } else { seen.since + row.leader_ttl * 11 / 10 })
    }

    /// The rows to take over now, if it is time.
    fn due(&self, now: Duration) -> Option<&Rows> {
        let seen = self.seen.as_ref()?;
        let is_fresh = now.saturating_sub(seen.last_answer) <= seen.longest_gap();
        (is_fresh && self.takeover_at()? <= now).then_some(&seen.rows)
    }
}

impl Seen {
    /// The longest time between two answers that continue one count.
    fn longest_gap(&self) -> Duration {
        self.rows.leadership.leader_ttl / 4
    }
}

impl Leader {
    /// A leader that has not renewed yet, and so may not act yet.
    fn new(row: LeadershipRow, sequence: u64, now: Duration) -> Self {
        Self {
            row,
            sequence,
            valid_until: Duration::ZERO,
            ledger_answered: now,
            next_renewal: now,
            lost: None,
        }
    }

    /// Judges an answer to a request that was sent when the batch `sequence` was committed.
    ///
    /// A lower epoch is a takeover that the database has lost. While this leader is valid, nobody else
    /// has acted since. Later that is known only of a row that is as this server once saw it: in another
    /// one a server may have led and granted since, which a rewriting would undo.
    fn judge(&self, rows: &Rows, sequence: u64, history: &History, now: Duration) -> Judged {
        let Rows { leadership, journal } = rows;
        if leadership.epoch < self.row.epoch {
            let is_alone = now < self.valid_until || history.has(leadership);
            if is_alone { Judged::WritesLost } else { Judged::Deposed }
        } else if leadership.leader != self.row.leader || leadership.released {
            Judged::Deposed
        } else if journal.sequence < sequence {
            Judged::WritesLost
        } else {
            Judged::Mine
        }
    }
}

impl LeadershipRow {
    fn renewal_interval(&self) -> Duration {
        self.leader_ttl / RENEWALS_PER_TTL
    }

    fn retry_interval(&self) -> Duration {
        read_interval(self.leader_ttl)
    }
}

impl Leadership {
    /// A standby that has seen nothing yet.
    pub fn new(config: Config, now: Duration) -> Self {
        let mut random = ChaCha8Rng::from_seed(config.seed);
        let next_id = random_id(&mut random);
        let role = Role::Standby(Standby::new(config.member, now));
        let history = History::default();
        Self { config, random, next_id, is_candidate: true, history, role, in_flight: None }
    }

    /// The row of this server's term; `None` while it does not lead.
    pub fn term(&self) -> Option<&LeadershipRow> {
        match &self.role {
            Role::Leader(leader) => Some(&leader.row),
            _ => None,
        }
    }

    /// Whether the database may still have a term of this server that is not released.
    pub fn has_row(&self) -> bool {
        !matches!(self.role, Role::Standby(_))
    }

    /// Until when this server may act as the leader; `None` while it may not.
    pub fn valid_until(&self, now: Duration) -> Option<Duration> {
        match &self.role {
            Role::Leader(leader) => Some(leader.valid_until).filter(|until| now < *until),
            _ => None,
        }
    }

    /// The leader as the last answer showed it, where another server leads.
    pub fn leader(&self) -> Option<&LeadershipRow> {
        match &self.role {
            Role::Standby(Standby { seen: Some(seen), .. }) => {
                Some(&seen.rows.leadership).filter(|row| !row.released)
            }
            _ => None,
        }
    }

    /// Whether this server stands by, and the database has not answered its last request.
    pub fn has_failed_to_read(&self) -> bool {
        matches!(self.role, Role::Standby(Standby { seen: None, .. }))
    }

    /// Sets whether this server may take over. A server that is shutting down may not.
    pub fn set_candidate(&mut self, is_candidate: bool) {
        self.is_candidate = is_candidate;
    }

    /// Notes that the ledger answered. Without this the leader stops renewing after a second.
    pub fn ledger_answered(&mut self, now: Duration) {
        if let Role::Leader(leader) = &mut self.role {
            leader.ledger_answered = now;
        }
    }

    /// Notes that a batch was committed.
    pub fn committed(&mut self, sequence: u64) {
        if let Role::Leader(leader) = &mut self.role {
            leader.sequence = leader.sequence.max(sequence);
        }
    }

    /// Renews soon: a commit found another row than it expected.
    pub fn renew_soon(&mut self, now: Duration) {
        if let Role::Leader(leader) = &mut self.role {
            leader.next_renewal = now;
        }
    }

    /// Gives the leadership up, to anybody. From now on this server is a standby, whatever the database
    /// answers.
    pub fn release(&mut self, now: Duration) {
        self.release_to(None, now);
    }

    /// Gives the leadership up to `successor`, as [`Leadership::release`] does. The other servers wait as
    /// long as for a leader that is gone.
    pub fn release_to(&mut self, successor: Option<MemberId>, now: Duration) {
        if let Role::Leader(Leader { row, .. }) = &self.role {
            let (row, give_up_at) = (row.clone(), now + row.leader_ttl);
            self.role = Role::Releasing { row, successor, give_up_at, next_try: now };
        }
    }

    /// Returns the request to send now, if any.
    pub fn poll(&mut self, now: Duration) -> Option<Request> {
        if self.in_flight.is_some() {
            return None;
        }
        let request = match &mut self.role {
            Role::Standby(standby) => match standby.due(now).filter(|_| self.is_candidate) {
                Some(seen) => {
                    let (seen, end_blocker) = (seen.clone(), standby.end_blocker);
                    Request::TakeOver { new: self.next_rows(&seen, 0), seen, end_blocker }
                }
                None if standby.next_read <= now => Request::Read,
                None => return None,
            },
            Role::Leader(leader) => {
                if leader.next_renewal > now {
                    return None;
                }
                if now.saturating_sub(leader.ledger_answered) > LEDGER_WITHIN {
                    leader.next_renewal = now + leader.row.retry_interval();
                    return None;
                }
                match leader.lost.clone() {
                    Some(seen) => {
                        let (epoch, sequence) = (leader.row.epoch, leader.sequence);
                        let mut new = self.next_rows(&seen, epoch);
                        new.journal.sequence = sequence;
                        Request::Rewrite { seen, new }
                    }
                    None => {
                        Request::Replace { seen: leader.row.clone(), new: renewed(&leader.row) }
                    }
                }
            }
            Role::Releasing { row, successor, give_up_at, next_try } => {
                if *give_up_at <= now {
                    self.role = Role::Standby(Standby::new(self.config.member, now));
                    return self.poll(now);
                }
                if *next_try > now {
                    return None;
                }
                Request::Replace {
                    seen: row.clone(),
                    new: LeadershipRow { released: true, successor: *successor, ..row.clone() },
                }
            }
        };
        let sequence = if let Role::Leader(leader) = &self.role { leader.sequence } else { 0 };
        self.in_flight = Some(InFlight { request: request.clone(), sent: now, sequence });
        Some(request)
    }

    /// When to poll again, if no answer comes before; `None` while a request is in flight.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if self.in_flight.is_some() {
            return None;
        }
        Some(match &self.role {
            Role::Standby(standby) => {
                let takeover = standby.takeover_at().filter(|_| self.is_candidate);
                takeover.map_or(standby.next_read, |at| at.min(standby.next_read))
            }
            Role::Leader(leader) => leader.next_renewal,
            Role::Releasing { give_up_at, next_try, .. } => *give_up_at.min(next_try),
        })
    }

    /// Handles the answer to the request in flight. An answer without a request is ignored.
    pub fn handle_answer(&mut self, answer: Answer, now: Duration) -> Option<Event> {
        let InFlight { request, sent, sequence } = self.in_flight.take()?;
        if let Answer::Read(rows) | Answer::Differ(rows) | Answer::Replaced(rows) = &answer
            && !matches!(self.role, Role::Leader(_))
        {
            self.history.add(&rows.leadership);
        }
        match &mut self.role {
            Role::Standby(_) => self.handle_as_standby(request, answer, now),
            Role::Leader(_) => self.handle_as_leader(answer, sent, sequence, now),
            Role::Releasing { .. } => {
                self.handle_while_releasing(&request, answer, now);
                None
            }
        }
    }

    fn handle_as_standby(
        &mut self,
        request: Request,
        answer: Answer,
        now: Duration,
    ) -> Option<Event> {
        let Role::Standby(standby) = &mut self.role else { return None };
        match (request, answer) {
            (Request::TakeOver { .. }, Answer::Blocked) => {
                // The row cannot have changed, and the database answers: the count goes on.
                standby.end_blocker = true;
                if let Some(seen) = &mut standby.seen {
                    seen.last_answer = now;
                }
                None
            }
            (_, Answer::Read(rows) | Answer::Differ(rows) | Answer::Replaced(rows)) => {
                // The takeover happened; its own acknowledgement may have been lost.
                if rows.leadership.leader == self.next_id && !rows.leadership.released {
                    return self.become_leader(rows, now);
                }
                standby.end_blocker = false;
                let is_stale = self.history.is_stale(&rows.leadership);
                standby.observe(rows, is_stale, now);
                None
            }
            (_, Answer::Failed | Answer::Blocked) => {
                let retry = read_interval(self.config.leader_ttl);
                let released = standby.released;
                let next_read = now + retry;
                *standby = Standby { next_read, released, ..Standby::new(standby.member, now) };
                None
            }
        }
    }

    fn handle_as_leader(
        &mut self,
        answer: Answer,
        sent: Duration,
        sequence: u64,
        now: Duration,
    ) -> Option<Event> {
        let Role::Leader(leader) = &mut self.role else { return None };
        let was_replaced = matches!(answer, Answer::Replaced(_));
        match answer {
            Answer::Failed | Answer::Blocked => {
                leader.next_renewal = now + leader.row.retry_interval();
                None
            }
            Answer::Replaced(rows) | Answer::Differ(rows) | Answer::Read(rows) => {
                // The rewriting happened; its own acknowledgement may have been lost.
                if rows.leadership.leader == self.next_id {
                    self.history.add(&leader.row);
                    return Some(Event::Rewritten(self.begin_term(rows, now)));
                }
                match leader.judge(&rows, sequence, &self.history, now) {
                    Judged::Deposed => {
                        let mut standby = Standby::new(self.config.member, now);
                        self.history.add(&rows.leadership);
                        let is_stale = self.history.is_stale(&rows.leadership);
                        standby.observe(rows, is_stale, now);
                        self.role = Role::Standby(standby);
                        Some(Event::Deposed)
                    }
                    Judged::WritesLost => {
                        self.history.add(&rows.leadership);
                        leader.lost = Some(rows);
                        leader.valid_until = Duration::ZERO;
                        leader.next_renewal = now;
                        Some(Event::WritesLost)
                    }
                    Judged::Mine => {
                        leader.lost = None;
                        leader.row = rows.leadership;
                        leader.next_renewal = now;
                        // A row that an earlier renewal left says nothing about this one.
                        if !was_replaced {
                            return None;
                        }
                        leader.valid_until = sent + leader.row.leader_ttl;
                        leader.next_renewal = sent + leader.row.renewal_interval();
                        Some(Event::ValidUntil(leader.valid_until))
                    }
                }
            }
        }
    }

    fn handle_while_releasing(&mut self, request: &Request, answer: Answer, now: Duration) {
        let Role::Releasing { row, next_try, .. } = &mut self.role else { return };
        match answer {
            Answer::Replaced(rows) | Answer::Differ(rows) | Answer::Read(rows)
                if rows.leadership.leader == row.leader && !rows.leadership.released =>
            {
                // A renewal was in flight, or its acknowledgement was lost.
                (*row, *next_try) = (rows.leadership, now);
            }
            Answer::Failed | Answer::Blocked => {
                // A renewal that failed was no attempt to release.
                let is_release = matches!(request, Request::Replace { new, .. } if new.released);
                *next_try = if is_release { now + row.retry_interval() } else { now };
            }
            Answer::Replaced(rows) | Answer::Differ(rows) | Answer::Read(rows) => {
                let released = Some(row.leader);
                let mut standby = Standby { released, ..Standby::new(self.config.member, now) };
                let is_stale = self.history.is_stale(&rows.leadership);
                standby.observe(rows, is_stale, now);
                self.role = Role::Standby(standby);
            }
        }
    }

    fn become_leader(&mut self, rows: Rows, now: Duration) -> Option<Event> {
        let journal = self.begin_term(rows, now);
        if !self.is_candidate {
            self.release(now);
            return None;
        }
        Some(Event::Elected(journal))
    }

    fn begin_term(&mut self, rows: Rows, now: Duration) -> JournalRow {
        self.next_id = random_id(&mut self.random);
        let Rows { leadership, journal } = rows;
        self.role = Role::Leader(Leader::new(leadership, journal.sequence, now));
        journal
    }

    /// The rows of a new term of this server, above those that were seen and above `epoch`.
    fn next_rows(&self, seen: &Rows, epoch: u64) -> Rows {
        let Config { leader_ttl, address, .. } = &self.config;
        let leadership = LeadershipRow {
            epoch: seen.leadership.epoch.max(epoch) + 1,
            leader: self.next_id,
            renewals: 0,
            leader_ttl: *leader_ttl,
            address: address.clone(),
            released: false,
            successor: None,
        };
        let journal =
            JournalRow { leader: self.next_id, sequence: seen.journal.sequence, attempt: 0 };
        Rows { leadership, journal }
    }
}

fn read_interval(leader_ttl: Duration) -> Duration {
    LONGEST_READ_INTERVAL.min(leader_ttl / READS_PER_TTL)
}

/// The row after one more renewal.
fn renewed(row: &LeadershipRow) -> LeadershipRow {
    LeadershipRow { renewals: row.renewals + 1, ..row.clone() }
}

fn random_id(random: &mut ChaCha8Rng) -> LeaderId {
    LeaderId(u128::from(random.next_u64()) << 64 | u128::from(random.next_u64()))
}
