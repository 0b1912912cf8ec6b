//! Overrides: what operators set while the server runs. An override takes precedence over the policy
//! file until it is cleared.

use std::collections::BTreeMap;

use lease::WallTime;

/// The kind of subject of an override.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An organization.
    Organization,
    /// An API key.
    ApiKey,
}

impl Subject {
    /// `organization` or `api_key`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Organization => "organization",
            Self::ApiKey => "api_key",
        }
    }
}

/// The key of an override. There is at most one override of each key; setting it again replaces it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OverrideKey {
    /// The kind of subject.
    pub subject: Subject,
    /// The organization or API key.
    pub id: Box<str>,
    /// The service entry whose limit it sets; `None` for an override that disables or enables.
    pub service: Option<Box<str>>,
}

/// The value of an override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The limit if the key has a service; otherwise 0 for enabled and 1 for disabled.
    pub value: u64,
    /// When it was set.
    pub set_at: WallTime,
    /// The reason, as the operator wrote it.
    pub note: Box<str>,
}

/// All overrides, by key.
pub type Overrides = BTreeMap<OverrideKey, Override>;

/// The most overrides at once.
pub const MAX_OVERRIDES: usize = 100_000;

/// One change of the overrides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideChange {
    /// The key of the override.
    pub key: OverrideKey,
    /// The new value; `None` clears the override.
    pub value: Option<Override>,
}

/// One entry of the audit list: an action of an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its number. Numbers rise, also across restarts.
    pub number: u64,
    /// The time of the action.
    pub at: WallTime,
    /// The address of the caller, or `signal` or `file` for a reload.
    pub from: Box<str>,
    /// The action in words.
    pub action: Box<str>,
    /// The reason, as the operator wrote it.
    pub note: Box<str>,
    /// How many leases ended because of it.
    pub ended: u64,
}

/// The most audit entries that are kept; the oldest are removed first.
pub const MAX_AUDIT: usize = 10_000;
