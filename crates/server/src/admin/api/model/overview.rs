//! The totals of the server, and the events that `/api/events` sends.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::policy::{PolicyStatus, ServiceRow};
use super::records::{AuditEntry, Refusal, Refusals};

/// The totals of the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// The version of the server.
    pub version: String,
    /// When the server started.
    pub started_at: i64,
    /// Whether the server accepts changes now.
    pub ready: bool,
    /// Why the server does not accept changes; `null` when it does.
    pub problem: Option<String>,
    /// Rises with every change of these totals, across restarts too. Equal revisions mean that nothing
    /// changed.
    pub revision: u64,
    /// The URL of the store, without secrets.
    pub store: String,
    /// Live sessions.
    pub sessions: u64,
    /// Live workers.
    pub workers: u64,
    /// Organizations with live leases.
    pub active_organizations: u64,
    /// Known organizations: those in the policy or with an override, a lease, usage, or a refusal in
    /// the last hour.
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

/// The data of an event of `/api/events`. Its name is `overview`, `refusal`, `audit` or `policy`.
///
/// `overview` is sent first, and then at most four times a second, when something changed. A comment
/// every 10 seconds shows that the server is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Event {
    /// `overview`: the totals, when something changed.
    Overview(Box<Overview>),
    /// `refusal`: a borrow was refused. At most 20 a second are sent.
    Refusal(Refusal),
    /// `audit`: an operator did something.
    Audit(AuditEntry),
    /// `policy`: the file was loaded, or refused.
    Policy(PolicyStatus),
}
