//! The bounds of a connection, and of all connections of a caller: memory, places, and work in rounds.

mod call;
pub(crate) mod connection;
pub(crate) mod memory;
pub(crate) mod places;
pub(crate) mod rounds;

pub(crate) use call::{Call, Calls, reset_call_after, reset_call_by};
pub(crate) use connection::{Connection, InFlight, PublicStream};
pub(crate) use memory::Full;
pub(crate) use rounds::{Share, work_of};
