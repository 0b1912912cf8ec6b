//! The outcomes of a change by an operator and of a load of the policy file, also as JSON.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The outcome of a change by an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Done {
    /// How many leases it ended.
    pub ended: u64,
    /// A description of the change.
    pub summary: String,
}

/// The file of the policy, and the outcome of its last reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyStatus {
    /// The policy file; `null` for the built-in policy, or one set by a program.
    pub file: Option<String>,
    /// When the policy in force was loaded.
    pub loaded_at: i64,
    /// Why the current file is not in force: file, line, column and reason. `null` when it is.
    pub refused: Option<String>,
    /// Warnings about entries of the file that are valid but likely a mistake.
    pub warnings: Vec<String>,
    /// How many overrides by operators are in force.
    pub overrides: u64,
}
