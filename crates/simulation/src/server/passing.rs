//! The calls that a server has not answered yet.

use std::rc::Rc;

use store::fleet::LeaderId;

use crate::clock::Time;
use crate::event::Call;

/// The id of a term and its epoch.
pub(super) type TermId = (u64, LeaderId);

/// A call that this server has and has not answered.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) client: usize,
    pub(super) life: u32,
}

/// A call that is passed on to the leader, or held until there is one.
#[derive(Debug)]
pub(super) struct Passing {
    pub(super) call: Rc<Call>,
    pub(super) since: Time,
    /// The server and the term that it was sent to last, and which try that was.
    pub(super) sent: Option<(usize, LeaderId, u64)>,
    /// The caller has gone.
    pub(super) is_cancelled: bool,
}
