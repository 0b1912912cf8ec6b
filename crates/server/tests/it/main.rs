//! The server over real TCP, called with the generated client.

mod admin;
mod auth;
mod borrow;
mod borrow_id;
mod codes;
mod disk;
mod durable;
mod failing;
mod harness;
mod keep_alive;
mod lost;
mod returns;
mod start_stop;
mod state;
