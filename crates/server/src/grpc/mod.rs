//! The gRPC port: who calls what.

mod aside;
mod caller;
mod compression;
pub(crate) mod control;
mod deadline;
mod framing;
mod gateway;
mod headers;
mod report;
mod route;
mod service;
mod timely;
mod unary;
mod usage;
mod web;

pub(crate) use aside::{Aside, Tonic, boxed};
pub(crate) use gateway::Gateway;
pub(crate) use report::Reports;
pub(crate) use route::WORKER_POOL;
pub(crate) use service::WorkerPool;
pub(crate) use usage::{USAGE_SERVICE, UsageReports};
pub(crate) use web::Web;
