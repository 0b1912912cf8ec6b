//! What the thread of the leadership and the operations of a store tell each other.

use std::sync::OnceLock;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::fleet::{Member, MemberId, StepDownError};

/// The desk between the thread of the leadership and the operations.
#[derive(Debug)]
pub(crate) struct Desk {
    requests: Mutex<Vec<StepDown>>,
    members: Mutex<Vec<Member>>,
    policy_hash: Mutex<Box<str>>,
    /// The id of this server; set once for a server of a fleet.
    pub(crate) own: OnceLock<MemberId>,
    /// Whether the store has failed, and the leadership is released.
    pub(crate) is_useless: watch::Sender<bool>,
}

/// A request to hand over.
#[derive(Debug)]
pub(crate) struct StepDown {
    pub(crate) force: bool,
    pub(crate) purpose: Purpose,
    pub(crate) reply: oneshot::Sender<Result<Member, StepDownError>>,
}

/// What a request to hand over is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To know the successor; nothing changes.
    Plan,
    /// Another server leads.
    StepDown,
    /// Another server leads, and this one takes nothing over from now on.
    Retire,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            members: Mutex::default(),
            policy_hash: Mutex::default(),
            own: OnceLock::new(),
            is_useless: watch::Sender::new(false),
        }
    }
}

impl Desk {
    pub(crate) fn request(&self, request: StepDown) {
        self.requests.lock().push(request);
    }

    pub(crate) fn take_requests(&self) -> Vec<StepDown> {
        std::mem::take(&mut self.requests.lock())
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        self.members.lock().clone()
    }

    /// Whether the other servers know this one.
    pub(crate) fn is_member(&self) -> bool {
        let own = self.own.get();
        self.members.lock().iter().any(|member| Some(&member.id) == own)
    }

    pub(crate) fn set_members(&self, members: Vec<Member>) {
        *self.members.lock() = members;
    }

    pub(crate) fn set_policy_hash(&self, hash: &str) {
        *self.policy_hash.lock() = hash.into();
    }

    pub(crate) fn policy_hash(&self) -> Box<str> {
        self.policy_hash.lock().clone()
    }
}
