//! Live leases.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

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
    /// Only leases after this one in the order: `next` of the page before.
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
    /// How many match in total.
    pub total: u64,
    /// The leases of this page.
    pub sessions: Vec<Session>,
    /// The `after` of the next page; `null` on the last page.
    pub next: Option<String>,
}

/// A live lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// Its number: 24 hex digits that name it in this API. It is not the key.
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
    /// The indexer that holds it; `null` if no indexer was configured when it was borrowed.
    pub indexer: Option<String>,
    /// How long it has lived, in seconds.
    pub age_seconds: f64,
    /// How long it lives without a keep-alive, in seconds.
    pub ttl_seconds: f64,
    /// How long until it ends without a keep-alive, in seconds.
    pub ends_in_seconds: f64,
    /// Whether it was returned before the end of its minimal life, and counts until then.
    pub lingers: bool,
    /// How many workers of its indexer run under its trace; 0 for a worker.
    pub workers: u64,
}
