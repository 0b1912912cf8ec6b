//! What the thread of the leadership and the operations of a store tell each other.

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::fleet::{Member, StepDownError};

/// The desk between the thread of the leadership and the operations.
#[derive(Debug)]
pub(crate) struct Desk {
    requests: Mutex<Vec<StepDown>>,
    members: Mutex<Vec<Member>>,
    policy_hash: Mutex<Box<str>>,
    /// Whether the store has failed, and the leadership is released.
    pub(crate) is_useless: watch::Sender<bool>,
}

/// A request to hand over.
#[derive(Debug)]
pub(crate) struct StepDown {
    pub(crate) force: bool,
    /// Whether this server takes nothing over from now on.
    pub(crate) for_good: bool,
    pub(crate) reply: oneshot::Sender<Result<Member, StepDownError>>,
}

impl Default for Desk {
    fn default() -> Self {
        Self {
            requests: Mutex::default(),
            members: Mutex::default(),
            policy_hash: Mutex::default(),
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
