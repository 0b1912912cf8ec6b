//! The policy: it turns a text into the terms of each borrow. Pure: no I/O, no clock, no async.
//!
//! [`parse`] reads a text and checks all of it. [`Policy::terms`] turns a request into the terms of its
//! borrow. [`Policy::limit`] and its neighbours explain numbers with their sources. [`overrides`] are
//! set by operators; they take precedence over the text and never change it.

mod check;
mod digests;
mod entries;
mod error;
mod explain;
mod file;
mod findings;
mod indexers;
mod nearest;
mod outside;
pub mod overrides;
mod policy;
mod precedence;
mod reading;
mod services;
mod source;

pub use check::{Parsed, parse};
pub use error::{Place, PolicyError, Warning};
pub use explain::{PlanEntry, Summary};
pub use indexers::{Indexer, Unauthenticated};
pub use nearest::nearest;
pub use outside::{Outside, SettingError};
pub use policy::{DEFAULT_SERVICE, Policy, Refused, Ruling};
pub use services::{Service, ServiceId};
pub use source::Source;
