//! Organizations and API keys.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::limits::{Ceiling, Disabled};
use super::records::Refusals;

/// How to list organizations.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct OrganizationsQuery {
    /// Only organizations whose id contains this, ignoring case of ASCII letters.
    #[param(max_length = 256)]
    pub search: String,
    /// In which order.
    #[param(inline)]
    pub sort: OrganizationOrder,
    /// How many to skip.
    #[param(maximum = 10_000_000)]
    pub offset: u32,
    /// How many to list at most; 50 by default.
    #[param(minimum = 1, maximum = 500)]
    pub limit: Option<u32>,
}

/// The order of organizations. Equals are ordered by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OrganizationOrder {
    /// Highest utilization of a limit or a budget first.
    #[default]
    Fullest,
    /// Most leases first.
    Active,
    /// Most refusals in the last hour first.
    Refused,
    /// By id.
    Name,
}

/// One page of organizations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OrganizationPage {
    /// How many match in total.
    pub total: u64,
    /// The organizations of this page.
    pub organizations: Vec<Organization>,
}

/// An organization: its limits, its leases and its usage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Organization {
    /// Its id.
    pub organization: String,
    /// Its plan.
    pub plan: Option<String>,
    /// Whether it is disabled.
    pub disabled: Disabled,
    /// Its leases of each service, also of services of the policy of which it has none.
    pub services: Vec<OrganizationService>,
    /// Its usage budgets.
    pub budgets: Vec<BudgetRow>,
    /// Its borrows refused in the last hour.
    pub refusals: Refusals,
}

/// An organization's leases of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OrganizationService {
    /// The service, as leases name it.
    pub service: String,
    /// Live leases.
    pub active: u64,
    /// The limit on them.
    pub ceiling: Ceiling,
}

/// A usage budget and its usage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BudgetRow {
    /// The metric.
    pub metric: String,
    /// The usage in the current window.
    pub used: f64,
    /// The amount at which it is spent.
    pub amount: f64,
    /// `day` or `month`, UTC.
    pub per: String,
    /// When the window ends.
    pub resets_at: i64,
    /// Whether the usage has reached the amount.
    pub spent: bool,
}

/// An API key that has an entry in the policy or an override.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    /// Its id.
    pub api_key: String,
    /// Whether it is disabled.
    pub disabled: Disabled,
    /// Its limit on each service of the policy.
    pub limits: Vec<ServiceCeiling>,
}

/// The limit on one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceCeiling {
    /// The service entry.
    pub service: String,
    /// The limit.
    pub ceiling: Ceiling,
}
