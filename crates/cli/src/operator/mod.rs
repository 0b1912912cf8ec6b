//! The commands of an operator: leases, refusals, overrides and the policy.

pub(crate) mod admin;
mod args;
pub(crate) mod audit;
mod changed;
pub(crate) mod disable;
pub(crate) mod fleet;
pub(crate) mod limit;
pub(crate) mod organizations;
pub(crate) mod policy;
pub(crate) mod refusals;
pub(crate) mod revoke;
pub(crate) mod sessions;
pub(crate) mod table;
pub(crate) mod words;
