//! The commands as people run them: every test starts the real binary.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod admin;
mod admin_tls;
mod borrowing;
mod checking;
#[path = "../../../store/src/journal/postgres/tests/cluster.rs"]
#[allow(dead_code, reason = "tests of the store use all of it")]
mod cluster;
mod command_line;
mod demo;
mod deploy;
mod documents;
mod fleet;
mod harness;
mod hostile;
mod moving;
mod operating;
mod reloading;
mod service_manager;
mod serving;
mod settings;
mod store_file;
mod terminal;
mod top;
