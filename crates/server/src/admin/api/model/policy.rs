//! The policy in force.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::operator::PolicyStatus;

/// The policy in force, with the source of each number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EffectivePolicy {
    /// Its file and its last reload.
    pub status: PolicyStatus,
    /// The service entries.
    pub services: Vec<ServiceRow>,
    /// The plans.
    pub plans: Vec<Plan>,
    /// The names of the indexers. Without any, callers need no key.
    pub indexers: Vec<String>,
    /// The overrides that operators set.
    pub overrides: Vec<Override>,
}

/// One service entry of the policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceRow {
    /// Its name; `default` stands for services without an entry.
    pub service: String,
    /// Live leases.
    pub active: u64,
    /// The limit on all organizations.
    pub max_total: Option<u64>,
    /// The limit on an organization that has none of its own.
    pub max_per_organization: Option<u64>,
    /// The limit on an API key that has none of its own.
    pub max_per_api_key: Option<u64>,
    /// How long a lease lives without a keep-alive, in seconds.
    pub ttl_seconds: f64,
    /// The minimal life that clients are told, in seconds.
    pub minimal_life_seconds: f64,
    /// Whether limits and budgets are counted but refuse no borrow.
    pub observe: bool,
}

/// A plan of the policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// Its name.
    pub plan: String,
    /// Its limits on an organization.
    pub limits: Vec<PlanLimit>,
    /// Its usage budgets.
    pub budgets: Vec<PlanBudget>,
}

/// A limit of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanLimit {
    /// The service entry.
    pub service: String,
    /// The most leases at once.
    pub max: u64,
}

/// A usage budget of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanBudget {
    /// The metric.
    pub metric: String,
    /// The amount at which it is spent.
    pub amount: f64,
    /// `day` or `month`, UTC.
    pub per: String,
}

/// An override: set by an operator, it wins over the policy file until it is cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Override {
    /// `organization` or `api_key`.
    pub subject: String,
    /// The id of the subject.
    pub id: String,
    /// Whether it is disabled; `null` for a limit.
    pub disabled: Option<bool>,
    /// The service entry of the limit; `null` for a switch.
    pub service: Option<String>,
    /// The limit; `null` for a switch.
    pub max: Option<u64>,
    /// Whether it applies. A limit on a service that the policy no longer has does not.
    pub effective: bool,
    /// When it was set.
    pub set_at: i64,
    /// The reason that the operator gave.
    pub note: String,
}
