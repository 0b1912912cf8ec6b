//! The other servers of a fleet: calls are passed on to the server that leads, and calls that others
//! pass on are recognized. Small calls share one stream for each serving thread, a link; large ones, attached
//! clients and requests of operators have streams of their own.
//!
//! Servers know each other by the secret of the fleet, which is in the database. A call that is passed
//! on carries it, and who its caller is, and which term of leadership it is meant for.

mod attaching;
mod connections;
mod headers;
mod link;
mod operating;
mod origin;
mod passing;
mod routing;

pub(crate) use attaching::{Upstream, may_open_again};
pub(crate) use link::{HandedOn, LINK, Outbox, Record, Records, Sent, Unreadable, Word};
pub(crate) use origin::Origin;
pub(crate) use passing::{Outgoing, Over, PassedOn, answer_not_leading, is_not_leading};
pub(crate) use routing::{Fleet, Patience};
