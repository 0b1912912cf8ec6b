//! The configuration of a server: settings, the policy file, limits, and the files of TLS and of the
//! admin token.

mod check;
mod fleet;
pub(crate) mod given;
pub(crate) mod limits;
mod origin;
mod policy_file;
pub mod settings;
mod start;
pub(crate) mod tls;
mod token;
pub(crate) mod watch;

pub use fleet::{Endpoint, FleetConfig};
pub(crate) use given::Given;
pub use limits::PortLimits;
pub use origin::Origin;
pub(crate) use policy_file::NO_FILE;
pub use policy_file::{Loaded, NotLoaded, PolicyFile};
pub use start::Config;
pub use tls::TlsFiles;
pub use token::AdminToken;
pub(crate) use token::TokenInForce;
