//! The server over real TCP, called with the generated client.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod acknowledged;
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
mod changed_policy;
mod codes;
mod damaged;
mod disk;
mod drain;
mod durable;
mod ending;
mod events;
mod failing;
mod grpc_web;
mod harness;
mod isolation;
mod keep_alive;
mod limits;
mod listing;
mod lost;
mod metrics;
mod observed;
mod operated;
mod overrides;
mod place;
mod policy;
mod probes;
mod push;
mod real_disks;
mod reload;
mod returns;
mod stalled;
mod start_stop;
mod state;
mod tls;
mod upgrade;
mod usage;
