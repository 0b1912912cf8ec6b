//! The batches of a leader, and the calls that wait for them.

use std::rc::Rc;

use lease::{Change, LeaseId};

use crate::event::{Answer, Call, Hop};
use crate::message::Stamp;

/// What the journal of a term does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// It is being read.
    Loading,
    /// The next commit can be sent.
    Idle,
    /// A commit is in flight.
    Committing,
    /// The outcome of the last commit is unknown.
    Unknown,
    /// It is being found out.
    Resolving,
}

/// A batch that is being committed.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) changes: Rc<Vec<Change>>,
    pub(super) stamp: Stamp,
    pub(super) waiters: Vec<Waiter>,
}

/// A call that waits until a batch is durable.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) call: Rc<Call>,
    pub(super) to: To,
    pub(super) answer: Answer,
    /// The lease to take back if the answer is lost.
    pub(super) delivery: Option<LeaseId>,
}

/// Which batch an answer waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    Nothing,
    Committing,
    Gathering,
}

/// To whom an answer goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Client,
    Standby(Hop),
}
