//! The part of an attached stream that continues at the leader of the fleet.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use http::HeaderMap;
use prost::Message as _;
use tonic::Status;
use wire::control::attach_response::Event;
use wire::control::{AttachRequest, AttachResponse};

use crate::bounds::Connection;
use crate::fleet::{Fleet, Upstream, may_open_again};

/// The most batches of one stream that wait for the answer of the leader. A client has only a few in
/// flight.
pub(super) const MOST_UNANSWERED: usize = 16;

/// A stream of a client that is passed on to the leader.
///
/// The stream of the client stays when the leader changes: a new one is opened to the next leader, and
/// batches without an answer are sent again.
pub(super) struct Relay {
    fleet: Arc<Fleet>,
    metadata: Arc<HeaderMap>,
    peer: Option<SocketAddr>,
    indexer: Option<Box<str>>,
    connection: Option<Arc<Connection>>,
    link: Link,
    unanswered: VecDeque<AttachRequest>,
    /// The memory of these batches, which is taken from the connection of the client.
    bytes: usize,
}

type Opening = Pin<Box<dyn Future<Output = Result<Option<Upstream>, Status>> + Send>>;

enum Link {
    Closed,
    Opening(Opening),
    Open(Box<Upstream>),
}

/// What happened on the way to the leader.
pub(super) enum Happened {
    /// The leader has sent this event.
    Event(Event),
    /// Nothing for the client.
    Nothing,
    /// This server leads: these batches are answered here.
    LeadsHere(Vec<AttachRequest>),
    /// No leader answers: these batches were not handled.
    NotHandled(Vec<AttachRequest>),
    /// The leader ends the stream.
    Ended(Status),
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("unanswered", &self.unanswered.len()).finish_non_exhaustive()
    }
}

impl Relay {
    pub(super) fn new(
        fleet: Arc<Fleet>,
        metadata: Arc<HeaderMap>,
        indexer: Option<&str>,
        connection: Option<Arc<Connection>>,
    ) -> Self {
        Self {
            fleet,
            metadata,
            peer: connection.as_ref().and_then(|connection| connection.peer()),
            indexer: indexer.map(Into::into),
            connection,
            link: Link::Closed,
            unanswered: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Whether another batch may be passed on.
    pub(super) fn has_room(&self) -> bool {
        self.unanswered.len() < MOST_UNANSWERED
    }

    /// Passes a batch on. Returns it where there is no memory for it.
    pub(super) fn pass_on(&mut self, batch: AttachRequest) -> Result<(), AttachRequest> {
        let bytes = batch.encoded_len();
        if let Some(connection) = &self.connection
            && connection.memory().take(bytes).is_err()
        {
            return Err(batch);
        }
        self.bytes += bytes;
        if let Link::Open(upstream) = &self.link
            && !upstream.send(batch.clone())
        {
            self.link = Link::Closed;
        }
        self.unanswered.push_back(batch);
        Ok(())
    }

    /// Waits until something happens on the way to the leader. Never returns while no batch waits and
    /// no stream is open. Cancellation safe.
    pub(super) async fn next(&mut self) -> Happened {
        match &mut self.link {
            Link::Closed if self.unanswered.is_empty() => std::future::pending().await,
            Link::Closed => {
                let (fleet, metadata) = (self.fleet.clone(), self.metadata.clone());
                let (peer, indexer) = (self.peer, self.indexer.clone());
                self.link = Link::Opening(Box::pin(async move {
                    fleet.attach(&metadata, (peer, indexer.as_deref()), MOST_UNANSWERED).await
                }));
                Happened::Nothing
            }
            Link::Opening(opening) => {
                let opened = opening.await;
                self.opened(opened)
            }
            Link::Open(upstream) => {
                let event = upstream.next().await;
                self.arrived(event)
            }
        }
    }

    fn opened(&mut self, opened: Result<Option<Upstream>, Status>) -> Happened {
        self.link = Link::Closed;
        match opened {
            Ok(None) => Happened::LeadsHere(self.take_unanswered()),
            Ok(Some(upstream)) => {
                if self.unanswered.iter().all(|batch| upstream.send(batch.clone())) {
                    self.link = Link::Open(Box::new(upstream));
                }
                Happened::Nothing
            }
            Err(status) if may_open_again(&status) => {
                tracing::debug!(%status, "a stream was not passed on");
                Happened::NotHandled(self.take_unanswered())
            }
            Err(status) => Happened::Ended(status),
        }
    }

    fn arrived(&mut self, event: Option<Result<AttachResponse, Status>>) -> Happened {
        let event = match event {
            Some(Ok(AttachResponse { event: Some(event) })) => event,
            Some(Ok(AttachResponse { event: None })) => return Happened::Nothing,
            Some(Err(status)) if !may_open_again(&status) => return Happened::Ended(status),
            Some(Err(_)) | None => {
                self.link = Link::Closed;
                return Happened::Nothing;
            }
        };
        match &event {
            Event::Answer(answer) => {
                let is_it = |batch: &AttachRequest| batch.batch == answer.batch;
                if let Some(place) = self.unanswered.iter().position(is_it)
                    && let Some(batch) = self.unanswered.remove(place)
                {
                    self.give_back(batch.encoded_len());
                }
                Happened::Event(event)
            }
            Event::Revoked(_) => Happened::Event(event),
            // The stream of the client stays where the leader stops.
            Event::Draining(_) => Happened::Nothing,
        }
    }

    fn take_unanswered(&mut self) -> Vec<AttachRequest> {
        self.give_back(self.bytes);
        self.unanswered.drain(..).collect()
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if let Some(connection) = &self.connection {
            connection.memory().give_back(bytes);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}
