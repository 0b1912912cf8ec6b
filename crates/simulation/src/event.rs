//! What happens: timers, and messages that arrive.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lease::{BorrowId, LeaseId};
use store::fleet::LeaderId;
use tgm_session::Released;
use tgm_session::simulation::{Kept, Target, Wanted};

use crate::message::{Asker, Reply, Request};

/// A call of a client.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) client: usize,
    pub(crate) life: u32,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    Borrow { wanted: Wanted, id: BorrowId },
    KeepAlive { key: Arc<str> },
    Return { target: Target, minimal_life: Duration },
    Batch { keys: Vec<String> },
}

impl Call {
    /// Whether it may be sent again when it may have been applied.
    pub(crate) fn may_be_sent_again(&self) -> bool {
        match &self.what {
            What::Borrow { .. } | What::Batch { .. } => true,
            What::Return { target, .. } => matches!(target, Target::Borrow(_)),
            What::KeepAlive { .. } => false,
        }
    }
}

/// The answer to a call.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Granted {
        id: LeaseId,
        ttl: Duration,
        minimal_life: Duration,
    },
    Refused,
    IdUsed,
    Kept(Kept),
    Returned(Released),
    /// The places of a batch that were not extended.
    Places(Vec<(u32, Kept)>),
    Unavailable,
    /// The server does not lead the term that was named: the call was not applied.
    NotLeader,
}

/// A forwarded call: who sent it, and which of the tries of that server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) server: usize,
    pub(crate) life: u32,
    pub(crate) attempt: u64,
}

#[derive(Debug)]
pub(crate) enum Event {
    // The database.
    Request {
        asker: Asker,
        incarnation: u32,
        within: Duration,
        request: Box<Request>,
    },
    /// A transaction that held its locks for a while ends.
    EndTransaction {
        number: u64,
    },
    /// A transaction waits for a lock no longer.
    LockTimeout {
        number: u64,
    },
    Reply {
        asker: Asker,
        reply: Box<Reply>,
    },

    // Timers of servers.
    /// The leadership is due.
    Lead {
        server: usize,
        life: u32,
        wake: u64,
    },
    /// The journal thread goes on.
    Journal {
        server: usize,
        life: u32,
        wake: u64,
    },
    /// The overrides of a term are in force.
    Serve {
        server: usize,
        life: u32,
        term: u64,
    },
    Tick {
        server: usize,
        life: u32,
    },

    // Calls.
    Call {
        server: usize,
        call: Rc<Call>,
    },
    Cancel {
        server: usize,
        call: u64,
    },
    /// A standby looks again for a leader.
    Hold {
        server: usize,
        life: u32,
    },
    Forward {
        server: usize,
        hop: Hop,
        term: (u64, LeaderId),
        call: Rc<Call>,
    },
    Forwarded {
        hop: Hop,
        from: usize,
        call: u64,
        answer: Answer,
        is_ghost: bool,
    },
    /// A standby says what became of a forwarded grant.
    HandedOn {
        server: usize,
        hop: Hop,
        call: u64,
        is_handed_on: bool,
    },
    /// A server notices that another one has gone.
    LinkLost {
        server: usize,
        peer: usize,
    },
    Answer {
        client: usize,
        life: u32,
        call: u64,
        answer: Answer,
        is_ghost: bool,
    },
    Attach {
        server: usize,
        client: usize,
        life: u32,
        stream: u64,
    },
    Attached {
        client: usize,
        life: u32,
        stream: u64,
    },
    Detached {
        client: usize,
        life: u32,
        stream: u64,
    },
    /// The connection of a client to a server is lost.
    Disconnected {
        client: usize,
        life: u32,
        server: usize,
    },

    // Timers of clients.
    Wake {
        client: usize,
        life: u32,
        wake: u64,
    },
    /// The user of a client does something.
    Act {
        client: usize,
        life: u32,
    },
    Deadline {
        client: usize,
        life: u32,
        call: u64,
    },
    /// The deadline of a stream that is being opened.
    Unopened {
        client: usize,
        life: u32,
        stream: u64,
    },
    TryAgain {
        client: usize,
        life: u32,
        borrow: u64,
    },

    // Chance.
    Fault,
    /// The database is back.
    Back,
    ResumeServer {
        server: usize,
        life: u32,
    },
    StartServer {
        server: usize,
    },
    ResumeClient {
        client: usize,
        life: u32,
    },
    /// Faults end or begin again.
    Weather,
}

impl Event {
    /// The server at which it happens, with its life where it is a timer of that life.
    pub(crate) fn server(&self) -> Option<(usize, Option<u32>)> {
        match self {
            Self::Reply { asker, .. } => Some((asker.server, Some(asker.life))),
            Self::Lead { server, life, .. }
            | Self::Journal { server, life, .. }
            | Self::Serve { server, life, .. }
            | Self::Tick { server, life }
            | Self::Hold { server, life } => Some((*server, Some(*life))),
            Self::Forwarded { hop, .. } => Some((hop.server, Some(hop.life))),
            Self::Call { server, .. }
            | Self::Cancel { server, .. }
            | Self::Forward { server, .. }
            | Self::HandedOn { server, .. }
            | Self::LinkLost { server, .. }
            | Self::Attach { server, .. } => Some((*server, None)),
            _ => None,
        }
    }

    /// The client at which it happens, and its life.
    pub(crate) fn client(&self) -> Option<(usize, u32)> {
        match self {
            Self::Answer { client, life, .. }
            | Self::Attached { client, life, .. }
            | Self::Detached { client, life, .. }
            | Self::Disconnected { client, life, .. }
            | Self::Unopened { client, life, .. }
            | Self::Wake { client, life, .. }
            | Self::Act { client, life }
            | Self::Deadline { client, life, .. }
            | Self::TryAgain { client, life, .. } => Some((*client, *life)),
            _ => None,
        }
    }
}
