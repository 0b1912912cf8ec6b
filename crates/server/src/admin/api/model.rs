//! What the admin API says, as JSON. The page, the command line and the OpenAPI document all use these.
//!
//! Times are seconds since 1970, UTC; ages and durations are seconds; a ceiling that is absent is
//! `null`, one of 0 admits nobody. A lease is named by its *number*, never by its key, which is a
//! secret of its holder.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::{operator, refusals};

/// Where a number or a switch of the policy in force comes from. The first that says something wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An operator set it through the API.
    Override,
    /// The organization's or API key's own entry in the policy file.
    Own,
    /// The organization's plan.
    Plan,
    /// The entry of the service.
    Service,
    /// The entry `default`, for a service without one of its own.
    Default,
    /// Nothing says anything.
    Nothing,
}

impl Source {
    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::Own => "own",
            Self::Plan => "plan",
            Self::Service => "service",
            Self::Default => "default",
            Self::Nothing => "nothing",
        }
    }

    /// What sets it, in words: `40 by its own entry`.
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::Override => policy::Source::Override,
            Self::Own => policy::Source::Own,
            Self::Plan => policy::Source::Plan,
            Self::Service => policy::Source::Service,
            Self::Default => policy::Source::Default,
            Self::Nothing => policy::Source::Nothing,
        }
        .in_words()
    }
}

impl From<policy::Source> for Source {
    fn from(source: policy::Source) -> Self {
        match source {
            policy::Source::Override => Self::Override,
            policy::Source::Own => Self::Own,
            policy::Source::Plan => Self::Plan,
            policy::Source::Service => Self::Service,
            policy::Source::Default => Self::Default,
            policy::Source::Nothing => Self::Nothing,
        }
    }
}

/// A ceiling and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ceiling {
    /// The most leases at once; `null` is no limit, 0 is nobody.
    pub max: Option<u64>,
    /// Where it comes from.
    pub source: Source,
}

/// A switch and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Disabled {
    /// Whether borrows are refused and leases end.
    pub disabled: bool,
    /// Where that comes from.
    pub source: Source,
}

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

/// One service entry of the policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceRow {
    /// Its name; `default` stands for services without an entry.
    pub service: String,
    /// Live leases.
    pub active: u64,
    /// The ceiling over all organizations.
    pub max_total: Option<u64>,
    /// The ceiling over an organization that has none of its own.
    pub max_per_organization: Option<u64>,
    /// The ceiling over an API key that has none of its own.
    pub max_per_api_key: Option<u64>,
    /// How long a lease lives without a keep-alive, in seconds.
    pub ttl_seconds: f64,
    /// What clients are told about how long a lease counts at least, in seconds.
    pub minimal_life_seconds: f64,
    /// Whether ceilings and budgets are counted but refuse nobody.
    pub observe: bool,
}

/// Where the policy comes from and how its last reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// The policy file; `null` for the built-in policy, or one set by a program.
    pub file: Option<String>,
    /// When the policy in force was loaded.
    pub loaded_at: i64,
    /// Why the file as it is now is not in force: file, line, column and reason. `null` when it is.
    pub refused: Option<String>,
    /// What in the file is allowed but likely not meant.
    pub warnings: Vec<String>,
    /// How many overrides by operators are in force.
    pub overrides: u64,
}

impl From<operator::PolicyStatus> for PolicyStatus {
    fn from(status: operator::PolicyStatus) -> Self {
        let operator::PolicyStatus { file, loaded_at, refused, warnings, overrides } = status;
        Self { file, loaded_at, refused, warnings, overrides }
    }
}

/// Refused borrows, by what refused them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusals {
    /// The ceiling over the whole service.
    pub service: u64,
    /// The ceiling over the organization.
    pub organization: u64,
    /// The ceiling over the API key.
    pub api_key: u64,
    /// The cap of workers under one trace.
    pub trace: u64,
    /// A spent usage budget.
    pub budget: u64,
    /// A disabled organization or API key, a service the indexer may not use, or a worker after its
    /// session was revoked.
    pub disabled: u64,
}

impl Refusals {
    /// All of them.
    pub const fn total(&self) -> u64 {
        let Self { service, organization, api_key, trace, budget, disabled } = *self;
        service + organization + api_key + trace + budget + disabled
    }
}

impl From<refusals::Counts> for Refusals {
    fn from(counts: refusals::Counts) -> Self {
        let refusals::Counts { service, organization, api_key, trace, budget, disabled } = counts;
        Self { service, organization, api_key, trace, budget, disabled }
    }
}

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
    /// Closest to a ceiling or a budget first.
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
    /// How many match altogether.
    pub total: u64,
    /// The organizations of this page.
    pub organizations: Vec<Organization>,
}

/// An organization: what it may, what it holds, what it used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Organization {
    /// Its id.
    pub organization: String,
    /// Its plan.
    pub plan: Option<String>,
    /// Whether it is disabled.
    pub disabled: Disabled,
    /// What it holds of each service, those of the policy too of which it holds nothing.
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
    /// The ceiling over them.
    pub ceiling: Ceiling,
}

/// A usage budget and what is left of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BudgetRow {
    /// The metric.
    pub metric: String,
    /// What was used in the current window.
    pub used: f64,
    /// The amount at which it is spent.
    pub amount: f64,
    /// `day` or `month`, UTC.
    pub per: String,
    /// When the window ends.
    pub resets_at: i64,
    /// Whether nothing is left.
    pub spent: bool,
}

/// How to list leases.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct SessionsQuery {
    /// Only of this organization.
    #[param(max_length = 256)]
    pub organization: Option<String>,
    /// Only of this service.
    #[param(max_length = 256)]
    pub service: Option<String>,
    /// Only under this trace id.
    #[param(max_length = 256)]
    pub trace: Option<String>,
    /// Only with this API key id.
    #[param(max_length = 256)]
    pub api_key: Option<String>,
    /// Only of this indexer.
    #[param(max_length = 256)]
    pub indexer: Option<String>,
    /// Only sessions, only workers, or both. By default sessions.
    #[param(inline)]
    pub kind: LeaseKinds,
    /// In which order.
    #[param(inline)]
    pub order: AgeOrder,
    /// Only what follows this lease in that order: `next` of the page before.
    #[param(pattern = "^[0-9a-fA-F]{24}$")]
    pub after: Option<String>,
    /// How many to list at most; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// Which kinds of leases to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseKinds {
    /// Sessions.
    #[default]
    Session,
    /// Workers.
    Worker,
    /// Both.
    Any,
}

/// The order of leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AgeOrder {
    /// The youngest first.
    #[default]
    Newest,
    /// The oldest first.
    Oldest,
}

/// One page of leases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SessionPage {
    /// How many match altogether.
    pub total: u64,
    /// The leases of this page.
    pub sessions: Vec<Session>,
    /// What to give as `after` for the next page; `null` when there is none.
    pub next: Option<String>,
}

/// A live lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its number: 24 hex digits that name it here and are no key.
    pub lease: String,
    /// `session` or `worker`.
    pub kind: String,
    /// The service.
    pub service: String,
    /// The organization.
    pub organization: String,
    /// The API key id; empty when there is none.
    pub api_key: String,
    /// The trace id; empty when there is none.
    pub trace: String,
    /// The indexer that holds it; `null` for one borrowed while no indexer was configured.
    pub indexer: Option<String>,
    /// How long it has lived, in seconds.
    pub age_seconds: f64,
    /// How long it lives without a keep-alive, in seconds.
    pub ttl_seconds: f64,
    /// How long until it ends unless it is kept alive, in seconds.
    pub ends_in_seconds: f64,
    /// Whether it was returned young and only lasts out its minimal life.
    pub lingers: bool,
    /// How many workers of its indexer run under its trace; 0 for a worker.
    pub workers: u64,
}

/// What an operator did to something, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// How many leases ended by it.
    pub ended: u64,
    /// What was done, in words.
    pub summary: String,
}

impl From<operator::Done> for Done {
    fn from(done: operator::Done) -> Self {
        let operator::Done { ended, summary } = done;
        Self { ended, summary }
    }
}

/// Disables or enables an organization or an API key, whatever the policy file says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDisabled {
    /// Whether borrows are refused and leases end.
    pub disabled: bool,
    /// Why, for the audit list.
    #[serde(default)]
    #[schema(max_length = 512)]
    pub note: String,
}

/// Why something is done that needs no body to say what.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct NoteQuery {
    /// Why, for the audit list.
    #[param(max_length = 512)]
    pub note: String,
}

/// Sets a ceiling over an organization or an API key, whatever the policy file says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLimit {
    /// The most leases at once; 0 admits nobody.
    #[serde(deserialize_with = "whole")]
    #[schema(maximum = 1_000_000_000_000_u64)]
    pub max: u64,
    /// Why, for the audit list.
    #[serde(default)]
    #[schema(max_length = 512)]
    pub note: String,
}

/// Reads a number without a fraction: to JSON 40.0 is the same as 40.
fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole =
        number.as_f64().filter(|number| (0.0..=1e15).contains(number) && number.fract() == 0.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    number
        .as_u64()
        .or_else(|| whole.map(|number| number as u64))
        .ok_or_else(|| D::Error::custom(format!("{number} is no whole number from 0")))
}

/// An API key that the policy or an operator says something about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    /// Its id.
    pub api_key: String,
    /// Whether it is disabled.
    pub disabled: Disabled,
    /// Its ceiling over each service of the policy.
    pub limits: Vec<ServiceCeiling>,
}

/// The ceiling over one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceCeiling {
    /// The service entry.
    pub service: String,
    /// The ceiling.
    pub ceiling: Ceiling,
}

/// The policy in force, with the source of each number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EffectivePolicy {
    /// Where it comes from.
    pub status: PolicyStatus,
    /// The service entries.
    pub services: Vec<ServiceRow>,
    /// The plans.
    pub plans: Vec<Plan>,
    /// The names of the indexers; with none, callers show no key.
    pub indexers: Vec<String>,
    /// What operators set through the API.
    pub overrides: Vec<Override>,
}

/// A plan of the policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Plan {
    /// Its name.
    pub plan: String,
    /// Its ceilings over an organization.
    pub limits: Vec<PlanLimit>,
    /// Its usage budgets.
    pub budgets: Vec<PlanBudget>,
}

/// A ceiling of a plan.
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

/// Something an operator set through the API, which wins over the policy file until it is cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Override {
    /// `organization` or `api_key`.
    pub subject: String,
    /// Which one.
    pub id: String,
    /// Whether it is disabled; `null` when this is about a limit.
    pub disabled: Option<bool>,
    /// The service entry whose limit it is; `null` when this is about being disabled.
    pub service: Option<String>,
    /// The limit; `null` when this is about being disabled.
    pub max: Option<u64>,
    /// Whether it applies: a limit over a service that the policy no longer has does not.
    pub effective: bool,
    /// When it was set.
    pub set_at: i64,
    /// Why, as the operator wrote it.
    pub note: String,
}

/// How to list refusals.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct RefusalsQuery {
    /// Only of this organization.
    #[param(max_length = 256)]
    pub organization: Option<String>,
    /// How many to list at most; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// The latest refused borrows, the latest first. The server keeps 1,000 of them, in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusalPage {
    /// The refusals.
    pub refusals: Vec<Refusal>,
}

/// A refused borrow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// When.
    pub at: i64,
    /// The organization that asked.
    pub organization: String,
    /// The service it asked for.
    pub service: String,
    /// The API key id it came with.
    pub api_key: String,
    /// The trace id it came with.
    pub trace: String,
    /// What refused it: `service`, `organization`, `api_key`, `trace`, `budget` or `disabled`.
    pub scope: String,
    /// Why, in words, as the caller was told.
    pub reason: String,
    /// How many leases counted against the ceiling; `null` when it was no ceiling.
    pub active: Option<u64>,
    /// The ceiling; `null` when it was none.
    pub max: Option<u64>,
    /// Whether it was granted nevertheless, because the service is only observed.
    pub observed: bool,
}

impl From<&refusals::Noted> for Refusal {
    fn from(noted: &refusals::Noted) -> Self {
        let (active, max) = noted.ceiling().unzip();
        Self {
            at: noted.at.as_unix(),
            organization: noted.organization.to_string(),
            service: noted.service.to_string(),
            api_key: noted.api_key.to_string(),
            trace: noted.trace.to_string(),
            scope: noted.scope().to_owned(),
            reason: noted.reason(),
            active,
            max,
            observed: noted.observed,
        }
    }
}

/// How to list what operators did.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct AuditQuery {
    /// Only entries with a lower number: the lowest of the page before.
    #[param(maximum = 9_007_199_254_740_991_u64)]
    pub before: Option<u64>,
    /// How many to list at most; 100 by default.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
}

/// What operators did, the latest first. The server keeps 10,000 entries, durably.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
}

/// One thing an operator did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Its number; they rise.
    pub number: u64,
    /// When.
    pub at: i64,
    /// From where: the address of the caller, or `signal` or `file` for a reload.
    pub from: String,
    /// What was done, in words.
    pub action: String,
    /// Why, as the operator wrote it.
    pub note: String,
    /// How many leases ended by it.
    pub ended: u64,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What is wrong, and what to do.
    pub error: String,
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
