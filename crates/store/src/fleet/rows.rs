//! The two rows of the database that say who leads.

use std::fmt;
use std::time::Duration;

/// The random id of one term of leadership. Each takeover has a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeaderId(pub u128);

impl fmt::Display for LeaderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The random id of one process that is a server of a fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u128);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The row that says who leads.
///
/// A new database has one with epoch 0 that is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeadershipRow {
    /// The number of the term: each takeover has a higher one than the one before.
    pub epoch: u64,
    /// The id of the term.
    pub leader: LeaderId,
    /// How often the leader has renewed its term.
    pub renewals: u64,
    /// How long a renewal is valid. It counts for every server of the fleet.
    pub leader_ttl: Duration,
    /// Where the other servers reach the leader.
    pub address: Box<str>,
    /// Whether the leader has given the term up.
    pub released: bool,
    /// The server that takes a released term over at once; `None` leaves that to anybody.
    pub successor: Option<MemberId>,
}

/// The row that says which batch was committed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalRow {
    /// The leader that may commit.
    pub leader: LeaderId,
    /// The number of the last batch. It goes on from one leader to the next.
    pub sequence: u64,
    /// Raised to find out whether a commit happened: a commit of an earlier attempt cannot happen
    /// afterwards.
    pub attempt: u64,
}

/// Both rows, as one answer of the database shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Who leads.
    pub leadership: LeadershipRow,
    /// What was committed last.
    pub journal: JournalRow,
}

impl Rows {
    /// The rows of a new database: nobody leads, and everybody may take over.
    pub fn new(leader_ttl: Duration) -> Self {
        let leadership = LeadershipRow {
            epoch: 0,
            leader: LeaderId::default(),
            renewals: 0,
            leader_ttl,
            address: "".into(),
            released: true,
            successor: None,
        };
        Self { leadership, journal: JournalRow::default() }
    }
}
