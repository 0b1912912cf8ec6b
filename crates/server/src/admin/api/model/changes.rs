//! Changes by operators, and their outcome.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

pub use crate::operator::Done;

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

/// Sets a limit on an organization or an API key, whatever the policy file says.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetLimit {
    /// The most leases at once; 0 admits no lease.
    #[serde(deserialize_with = "whole_number")]
    #[schema(maximum = 1_000_000_000_000_u64)]
    pub max: u64,
    /// Why, for the audit list.
    #[serde(default)]
    #[schema(max_length = 512)]
    pub note: String,
}

/// Reads a whole number. `40.0` is valid: in JSON it is the same number as `40`.
fn whole_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    let whole =
        number.as_f64().filter(|number| (0.0..=1e15).contains(number) && number.fract() == 0.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    number
        .as_u64()
        .or_else(|| whole.map(|number| number as u64))
        .ok_or_else(|| D::Error::custom(format!("{number} is no whole number from 0")))
}

/// The note of a request without a body.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct NoteQuery {
    /// Why, for the audit list.
    #[param(max_length = 512)]
    pub note: String,
}
