//! The session server: policy, durable stores and the gRPC and admin ports.
//!
//! A streaming data service sells an organization a number of concurrent streams, and many
//! processes serve it. This server counts them: it grants leases under the limits of a [`Policy`],
//! keeps them in a [store] and gives every process the same numbers.
//!
//! A call passes four parts:
//!
//! - the gRPC port identifies the caller and the method (`grpc/gateway.rs`),
//! - the worker pool translates between the wire and the domain (`grpc/service.rs`),
//! - the [`Policy`] turns a request into the terms of its borrow,
//! - the [`Store`](store::Store) applies one whole lease operation and returns when it is durable.
//!
//! Clients may attach (`grpc/control`): then they keep leases alive in batches on one stream, and
//! receive revocations on it at once.
//!
//! The rules themselves are in the crate `lease`. [`Server`] puts the parts together:
//!
//! ```no_run
//! use tgm_session_server::store::StoreUrl;
//! use tgm_session_server::{Config, Error, Loaded, Server};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn serve(shutdown: CancellationToken) -> Result<(), Error> {
//! let loaded = Loaded::load("policy.toml")?;
//! for warning in &loaded.warnings {
//!     eprintln!("{warning}");
//! }
//! let config = Config::new(loaded.policy, "file:/var/lib/tgm-session/".parse::<StoreUrl>()?);
//! let server = Server::bind(config).await?;
//! println!("sessions on {}", server.grpc_address());
//! server.run(shutdown).await
//! # }
//! ```

mod accept;
mod admin;
mod blocking;
mod bounds;
mod config;
mod error;
mod fleet;
mod grpc;
mod headers;
mod live;
mod metrics;
pub mod operator;
mod refusals;
mod repeated;
mod serve;
mod stream;
#[cfg(test)]
#[path = "../tests/it/log.rs"]
mod test_log;
pub mod text;

pub use ::policy;
pub use ::store;
pub use admin::api::model as api;
pub use config::settings;
pub use config::{
    AdminToken, Config, Endpoint, FleetConfig, Loaded, NotLoaded, Origin, PolicyFile, PortLimits,
    TlsFiles,
};
pub use error::Error;
pub use operator::Operator;
pub use policy::Policy;
pub use serve::{Running, Server};
pub use store::{Clock, SystemClock};
