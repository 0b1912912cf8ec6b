//! The library against two servers: a scripted one in virtual time, which can misbehave, and the
//! real server over TCP.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod also;
mod attached;
mod borrows;
mod cancelled;
mod closing;
mod crowded;
mod fail_open;
mod foreign;
mod keep_alives;
mod key_files;
mod log;
mod pushed;
mod real_server;
mod returns;
mod runtimes;
mod scripted;
mod stats;
mod tls;
mod variables;
