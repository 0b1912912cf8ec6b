//! The server over real TCP, called with the generated client.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod admin;
mod admin_client;
mod api;
mod api_changes;
mod attach;
mod attached;
mod auth;
mod borrow;
mod borrow_id;
mod bounds;
mod certificates;
mod changed_policy;
mod codes;
mod compressed;
mod drain;
mod durable;
mod events;
mod failing;
mod grpc_web;
mod harness;
mod isolation;
mod keep_alive;
mod limits;
mod log;
mod lost;
mod metrics;
mod nameless;
mod observed;
mod overrides;
mod place;
mod policy;
mod probes;
mod push;
mod real_disks;
mod reload;
mod returns;
mod revoked;
mod stalled;
mod start_stop;
mod state;
mod tls;
mod undecided;
mod usage;
mod written;
