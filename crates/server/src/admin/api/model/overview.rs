//! The totals of the server, and the events that `/api/events` sends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::policy::{PolicyStatus, ServiceRow};
use super::records::{AuditEntry, Refusal, Refusals};

/// The server at a glance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// The version of the server.
    pub version: String,
    /// When the server started.
    pub started_at: i64,
    /// Whether the server takes changes now.
    pub ready: bool,
    /// Why not, when it does not.
    pub problem: Option<String>,
    /// Rises with every change of what this shows, across restarts too; equal numbers mean that
    /// nothing changed.
    pub revision: u64,
    /// The URL of the store, without secrets.
    pub store: String,
    /// Live sessions.
    pub sessions: u64,
    /// Live workers.
    pub workers: u64,
    /// Organizations that hold anything.
    pub active_organizations: u64,
    /// Organizations that are known: from the policy, the overrides, leases, usage, or refusals in the
    /// last hour.
    pub organizations: u64,
    /// Attached streams of session control.
    pub attached_streams: u64,
    /// Borrows refused in the last hour.
    pub refusals: Refusals,
    /// The services of the policy.
    pub services: Vec<ServiceRow>,
    /// The policy in force.
    pub policy: PolicyStatus,
}

/// What `/api/events` sends, named by the event: `overview`, `refusal`, `audit` or `policy`.
///
/// `overview` comes first, and then at most four times a second when something changed; a comment
/// every 10 seconds says that the server is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Event {
    /// `overview`: the totals, when something changed.
    Overview(Box<Overview>),
    /// `refusal`: a borrow was refused. At most 20 a second are told.
    Refusal(Refusal),
    /// `audit`: an operator did something.
    Audit(AuditEntry),
    /// `policy`: the file was loaded, or refused.
    Policy(PolicyStatus),
}
