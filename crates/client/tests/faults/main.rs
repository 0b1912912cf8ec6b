//! What becomes of sessions when servers and networks fail: which go on, which end and why, and
//! that the server afterwards counts exactly what is held.
//!
//! Everything but the bad luck is real: the library with its own channel, the server, TCP between
//! them. The proxy in the middle is the tests' own, because no network fails on demand.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod chaos;
mod fail_open;
mod garbage;
#[path = "../support/gateway.rs"]
mod gateway;
#[path = "../support/host.rs"]
mod host;
mod late;
mod network;
mod outages;
#[path = "../support/proxy.rs"]
mod proxy;
mod restarts;
mod revocations;
mod world;
