//! The session server: policy, durable stores and the gRPC and admin ports.

mod admin;
mod clock;
mod error;
mod live;
pub mod policy;
mod rpc;
mod serve;
mod service;
pub mod store;

pub use admin::AdminToken;
pub use clock::{Clock, SystemClock};
pub use error::Error;
pub use policy::Policy;
pub use serve::{Config, Running, Server};
