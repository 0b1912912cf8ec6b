//! What servers ask the database, and what it answers.

use std::rc::Rc;

use lease::{Change, LeaseId, Timestamp};
use store::fleet::{self, JournalRow, LeaderId, Rows};

use crate::truth::Reader;

/// Which request of which server a reply of the database is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) server: usize,
    /// Raised when the process is killed.
    pub(crate) life: u32,
    pub(crate) connection: Connection,
    pub(crate) number: u64,
}

/// The connections of a server to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    /// For the two rows.
    Elections,
    /// For the journal.
    Journal,
}

/// The counters that the database keeps with each batch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stamp {
    pub(crate) time: Timestamp,
    pub(crate) next_serial: u64,
}

/// A request of a server.
#[derive(Debug)]
pub(crate) enum Request {
    Election(fleet::Request),
    /// Replace both rows and the journal.
    Rewrite {
        seen: Rows,
        new: Rows,
        content: Rc<Snapshot>,
    },
    Commit {
        seen: JournalRow,
        new: JournalRow,
        changes: Rc<Vec<Change>>,
        stamp: Stamp,
    },
    /// Raise the attempt, if the row is of this leader.
    Resolve {
        leader: LeaderId,
    },
    Load,
}

/// What a leader writes again.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) changes: Vec<Change>,
    pub(crate) stamp: Stamp,
    /// The leases that the leader holds and whether they linger, known apart from the snapshot.
    pub(crate) memory: Vec<(LeaseId, bool)>,
    pub(crate) reader: Reader,
    /// Whether the leader was valid when it noticed what is lost: another one may have acted since.
    pub(crate) may_overwrite: bool,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Reply {
    Election(fleet::Answer),
    /// Whether the batch was committed; the row was another one if not.
    Committed(bool),
    Row(JournalRow),
    Content(Box<Content>),
    /// An error, or no answer in time.
    Failed,
}

/// The journal as one snapshot of the database shows it.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) changes: Vec<Change>,
    pub(crate) stamp: Stamp,
    pub(crate) read_at: u64,
}
