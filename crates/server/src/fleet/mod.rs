//! The other servers of a fleet: calls are passed on to the server that leads, and calls that others
//! pass on are recognized.
//!
//! Servers know each other by the secret of the fleet, which is in the database. A call that is passed
//! on carries it, and who its caller is, and which term of leadership it is meant for.

mod attaching;
mod connections;
mod headers;
mod operating;
mod origin;
mod passing;
mod routing;

pub(crate) use attaching::{Upstream, may_open_again};
pub(crate) use origin::Origin;
pub(crate) use passing::{
    HandedOn, Outgoing, PassedOn, answer_not_leading, is_not_leading, wait_for_caller,
};
pub(crate) use routing::{Fleet, Patience};
