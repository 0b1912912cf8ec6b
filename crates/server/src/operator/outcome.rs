//! What came of an operator's act, and of loading the policy file.

/// What an operator did to something, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// How many leases ended by it.
    pub ended: u64,
    /// What was done, in words.
    pub summary: String,
}

/// Where the policy comes from and how its last reload went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStatus {
    /// The policy file; `None` for the built-in policy, or one set by a program.
    pub file: Option<String>,
    /// When the policy in force was loaded, in seconds since 1970.
    pub loaded_at: i64,
    /// Why the file as it is now is not in force: file, line, column and reason. `None` when it is.
    pub refused: Option<String>,
    /// What in the file is allowed but likely not meant.
    pub warnings: Vec<String>,
    /// How many overrides by operators are in force.
    pub overrides: u64,
}
