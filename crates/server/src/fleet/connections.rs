//! The connections to the leader for streams.

use std::sync::Arc;

use connect::Connection;
use parking_lot::Mutex;
use store::fleet::LeaderId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

/// The most streams on one connection.
const STREAMS: usize = 64;

/// The connections to the leader of a term, each with its places for streams.
#[derive(Debug)]
pub(super) struct StreamConnections {
    /// The most streams on one connection.
    most: usize,
    open: Mutex<Vec<(LeaderId, Connection, Arc<Semaphore>)>>,
}

impl StreamConnections {
    /// No connection yet. A server allows `max_streams` calls at once on each; streams get half of them.
    pub(super) fn new(max_streams: u32) -> Self {
        let most = STREAMS.min(max_streams as usize / 2).max(1);
        Self { most, open: Mutex::default() }
    }

    /// Returns a connection to the leader of that term with a place for one more stream. `make` makes a
    /// connection, if none has a place.
    pub(super) fn place(
        &self,
        leader: LeaderId,
        make: impl FnOnce() -> Result<Connection, Status>,
    ) -> Result<(Connection, OwnedSemaphorePermit), Status> {
        let mut open = self.open.lock();
        // Those of an earlier term and those without a stream are closed.
        open.retain(|(of, _, places)| *of == leader && places.available_permits() < self.most);
        for (_, connection, places) in &*open {
            if let Ok(place) = places.clone().try_acquire_owned() {
                return Ok((connection.clone(), place));
            }
        }
        let (connection, places) = (make()?, Arc::new(Semaphore::new(self.most)));
        let place = places.clone().try_acquire_owned();
        let place = place.map_err(|error| Status::unavailable(error.to_string()))?;
        open.push((leader, connection.clone(), places));
        Ok((connection, place))
    }
}
