//! What the operations of a store do under its lock.

pub(crate) mod enforcing;
pub(crate) mod kept;
mod listing;
mod operator;
mod recovered;
pub(crate) mod reporting;
pub(crate) mod shared;

pub use recovered::{Options, Recovered};
