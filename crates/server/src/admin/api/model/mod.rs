//! The types of the admin API, as JSON. The page, the command line and the OpenAPI document use them.
//!
//! Times are seconds since 1970, UTC; ages and durations are seconds; a limit that is absent is
//! `null`, and a limit of 0 admits no lease. A lease is named by its *number*, never by its key, which is
//! a secret of its holder.

mod changes;
mod fleet;
mod limits;
mod organizations;
mod overview;
mod policy;
mod records;
mod sessions;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use changes::{Done, NoteQuery, SetDisabled, SetLimit};
pub use fleet::{Fleet, FleetLeader, FleetServer, StepDownQuery};
pub use limits::{Ceiling, Disabled, Source};
pub use organizations::{
    ApiKey, BudgetRow, Organization, OrganizationOrder, OrganizationPage, OrganizationService,
    OrganizationsQuery, ServiceCeiling,
};
pub use overview::{Event, Overview};
pub use policy::{
    EffectivePolicy, Override, Plan, PlanBudget, PlanLimit, PolicyStatus, ServiceRow,
};
pub use records::{
    AuditEntry, AuditPage, AuditQuery, Refusal, RefusalPage, Refusals, RefusalsQuery,
};
pub use sessions::{AgeOrder, LeaseKinds, Session, SessionPage, SessionsQuery};

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What is wrong, and how to correct it.
    pub error: String,
}
