//! What operators set while the server runs: it wins over the policy file until it is cleared.

use std::collections::BTreeMap;

use lease::WallTime;

/// What an override is about.
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

/// Names one override. There is at most one of each name; setting it again replaces it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OverrideKey {
    /// What it is about.
    pub subject: Subject,
    /// Which organization or API key.
    pub id: Box<str>,
    /// The service entry whose limit it sets; `None` when it disables or enables.
    pub service: Option<Box<str>>,
}

/// What an override says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// 0 or 1 for enabled or disabled; the ceiling where the key names a service.
    pub value: u64,
    /// When it was set.
    pub set_at: WallTime,
    /// Why, as the operator wrote it.
    pub note: Box<str>,
}

/// All overrides, by name.
pub type Overrides = BTreeMap<OverrideKey, Override>;

/// Most overrides at once.
pub const MAX_OVERRIDES: usize = 100_000;

/// One change of the overrides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideChange {
    /// Which override.
    pub key: OverrideKey,
    /// What it says from now on; `None` clears it.
    pub value: Option<Override>,
}

/// One thing an operator did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its number; they rise, across restarts too.
    pub number: u64,
    /// When.
    pub at: WallTime,
    /// From where: the address of the caller, or `signal` or `file` for a reload.
    pub from: Box<str>,
    /// What was done, in words.
    pub action: Box<str>,
    /// Why, as the operator wrote it.
    pub note: Box<str>,
    /// How many leases ended by it.
    pub ended: u64,
}

/// Most audit entries kept; the oldest are forgotten first.
pub const MAX_AUDIT: usize = 10_000;
