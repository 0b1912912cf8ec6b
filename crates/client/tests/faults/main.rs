//! What happens to sessions when servers and networks fail: which sessions go on, which end and
//! why. After the faults the server must count exactly the leases that clients hold.
//!
//! Everything but the faults is real: the library with its own channel, the server, and TCP between
//! them. The proxy between them is part of the tests, because a real network does not fail on
//! demand.

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
