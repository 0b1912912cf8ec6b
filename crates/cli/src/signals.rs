//! The signals that stop a process, or reload its configuration.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(crate) use other::{Hangups, Signals};
#[cfg(unix)]
pub(crate) use unix::{Hangups, Signals};
