//! The gRPC port: identifies callers and answers their calls.

mod caller;
mod compression;
pub(crate) mod control;
mod deadline;
mod framing;
mod gateway;
mod linked;
mod public;
mod report;
mod route;
mod service;
mod timed_body;
mod unary;
mod usage;
mod web;

pub(crate) use gateway::Gateway;
pub(crate) use public::{PublicServices, Tonic, boxed};
pub(crate) use report::Reports;
pub(crate) use route::WORKER_POOL;
pub(crate) use service::WorkerPool;
pub(crate) use usage::{USAGE_SERVICE, UsageReports};
pub(crate) use web::Web;
