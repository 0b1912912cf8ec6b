//! The signals that ask a process to stop, or to load its configuration again.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub(crate) use other::{Hangups, Signals};
#[cfg(unix)]
pub(crate) use unix::{Hangups, Signals};
