//! The servers of a fleet.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The servers that share the store, as this server sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Fleet {
    /// Whether several servers can share the store. If not, the lists are empty.
    pub shared: bool,
    /// The server that leads; `null` while none does, or none is known.
    pub leader: Option<FleetLeader>,
    /// The servers, ordered by address. One that has died is listed for about a minute.
    pub servers: Vec<FleetServer>,
    /// What an operator should look at: servers with different policies or versions, no leader, nobody
    /// who could take over.
    pub warnings: Vec<String>,
}

/// The server that leads a fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetLeader {
    /// Where the other servers reach it.
    pub address: String,
    /// The number of its term.
    pub epoch: u64,
}

/// A server of a fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FleetServer {
    /// The random id of its process.
    pub id: String,
    /// Where the other servers reach it.
    pub address: String,
    /// `leader`, `standby` or `stopping`.
    pub role: String,
    /// Since when it has this role.
    pub role_since: i64,
    /// The number of the last term that it led; `null` if it has led none.
    pub epoch: Option<u64>,
    /// The version of the server.
    pub version: String,
    /// The hash of its policy without the settings of the server. Servers with equal hashes have equal
    /// policies.
    pub policy_hash: String,
    /// How many seconds ago it wrote to the database.
    pub seen_seconds_ago: f64,
    /// Whether it is the server that answers.
    pub is_self: bool,
}

/// How to hand the leadership over.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct StepDownQuery {
    /// Hand over to a server with another policy too.
    pub force: bool,
    /// Only tell which server would take over.
    pub dry_run: bool,
    /// Why, for the audit list.
    #[param(max_length = 512)]
    pub note: String,
}
