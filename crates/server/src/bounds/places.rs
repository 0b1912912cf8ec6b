//! Places for connections. Connections that are not proven cannot take all places, and idle ones of them
//! are closed first.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How many connections that are not proven are searched for an idle one: enough to find one in practice.
const SEARCHED: usize = 256;

/// How often to search for an idle connection while a new one waits for a place.
const SEARCH_AGAIN: Duration = Duration::from_millis(100);

/// A connection that has a place.
pub(crate) trait Occupant: fmt::Debug + Send + Sync {
    /// Whether it is idle and may be closed to make room.
    fn may_be_closed(&self, has_tls: bool) -> bool;

    /// Closes the connection at once.
    fn close_at_once(&self);
}

/// The places of all connections of the gRPC port.
#[derive(Debug)]
pub(crate) struct Places {
    most: usize,
    /// The most places of connections that are not proven.
    most_unproven: usize,
    has_tls: bool,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    next: u64,
    /// The connections that are not proven, the oldest first.
    unproven: BTreeMap<u64, Arc<dyn Occupant>>,
}

impl Places {
    /// `most` places. Connections that are not proven may take half of them, and at most
    /// `most_unproven`.
    pub(crate) fn new(most: usize, most_unproven: usize, has_tls: bool) -> Self {
        Self {
            most,
            most_unproven: most.div_ceil(2).min(most_unproven.max(1)),
            has_tls,
            state: Mutex::default(),
            freed: Notify::new(),
        }
    }

    /// Waits for a place for a new connection.
    ///
    /// Where places are short, the oldest idle connection that is not proven is closed. Cancellation
    /// safe.
    pub(crate) async fn take(self: &Arc<Self>, connection: Arc<dyn Occupant>) -> Place {
        loop {
            // Created before the attempt, so that a place that is freed after it is not missed.
            let freed = self.freed.notified();
            if let Some(number) = self.try_take(&connection) {
                return Place { places: self.clone(), number };
            }
            // A connection that becomes idle sends no notice.
            let _ = tokio::time::timeout(SEARCH_AGAIN, freed).await;
        }
    }

    fn try_take(&self, connection: &Arc<dyn Occupant>) -> Option<u64> {
        let mut state = self.state.lock();
        if state.taken >= self.most || state.unproven.len() >= self.most_unproven {
            let idle = state
                .unproven
                .iter()
                .take(SEARCHED)
                .find(|(_, one)| one.may_be_closed(self.has_tls));
            if let Some(number) = idle.map(|(&number, _)| number) {
                // Its place is freed when it has closed.
                if let Some(idle) = state.unproven.remove(&number) {
                    idle.close_at_once();
                }
            }
        }
        if state.taken >= self.most || state.unproven.len() >= self.most_unproven {
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.taken += 1;
        state.unproven.insert(number, connection.clone());
        Some(number)
    }

    /// Notes that the connection is proven, and returns whether it may stay. Where places are short,
    /// each of `callers` may have an equal share; the caller of this connection has `connections`.
    pub(crate) fn mark_proven(&self, place: u64, callers: usize, connections: usize) -> bool {
        let taken = {
            let mut state = self.state.lock();
            state.unproven.remove(&place);
            state.taken
        };
        self.freed.notify_one();
        let share = self.most / (callers + 1);
        taken < self.most - self.most / 8 || connections <= share.max(1)
    }
}

/// The place of a connection. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
}

impl Place {
    pub(crate) const fn number(&self) -> u64 {
        self.number
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.state.lock();
        state.taken -= 1;
        state.unproven.remove(&self.number);
        drop(state);
        self.places.freed.notify_one();
    }
}
