//! The commands as people run them: every test starts the real binary.
#![allow(clippy::unwrap_used, reason = "a test may")]

mod admin;
mod admin_tls;
mod borrowing;
mod checking;
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
