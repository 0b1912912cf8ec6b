//! `SessionLayer` in front of tonic and axum services, against the real session server over TCP.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "../../examples/gated_stream/blocks.rs"]
mod blocks;
mod direct;
mod grpc;
mod harness;
mod http;
mod web;
