//! The session server: policy, durable stores and the gRPC and admin ports.

mod clock;
mod error;
pub mod policy;
pub mod store;

pub use clock::{Clock, SystemClock};
pub use error::Error;
pub use policy::Policy;
