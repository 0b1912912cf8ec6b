//! The connections to the leader for streams.

use std::sync::Arc;

use connect::Connection;
use store::fleet::LeaderId;
use tokio::sync::Semaphore;

/// The connections to a leader for streams. Each has places for a number of streams.
#[derive(Debug)]
pub(super) struct StreamConnections {
    pub(super) leader: LeaderId,
    pub(super) connections: Vec<(Connection, Arc<Semaphore>)>,
}
