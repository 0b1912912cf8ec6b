//! Streams of attached clients that continue at the leader.

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderMap;
use http::uri::PathAndQuery;
use store::fleet::Leader;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status, Streaming};
use wire::control::session_control_client::SessionControlClient;
use wire::control::{AttachRequest, AttachResponse};

use super::headers::passed_on;
use super::routing::{Fleet, Patience};
use crate::headers::FLEET_NOT_LEADING;

/// How long the leader may take to open a stream.
const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// A stream at the leader, for one attached client of this server.
#[derive(Debug)]
pub(crate) struct Upstream {
    batches: mpsc::Sender<AttachRequest>,
    events: Streaming<AttachResponse>,
    _place: OwnedSemaphorePermit,
}

impl Upstream {
    /// Sends a batch. Returns `false` when the stream has ended, or takes no more.
    pub(crate) fn send(&self, batch: AttachRequest) -> bool {
        self.batches.try_send(batch).is_ok()
    }

    /// The next event of the leader; `None` at the end of the stream. Cancellation safe.
    pub(crate) async fn next(&mut self) -> Option<Result<AttachResponse, Status>> {
        self.events.message().await.transpose()
    }
}

/// Whether a stream may be opened again after it ended with this status.
pub(crate) fn may_open_again(status: &Status) -> bool {
    use tonic::Code;
    // A status with a source comes from the transport.
    status.metadata().contains_key(FLEET_NOT_LEADING)
        || std::error::Error::source(status).is_some()
        || matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
}

impl Fleet {
    /// Opens a stream at the leader for a client with this metadata, for at most `room` batches at once.
    /// Returns `None` when this server leads.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE` when no server leads or it does not answer, and the status of the leader.
    pub(crate) async fn attach(
        &self,
        metadata: &HeaderMap,
        (peer, indexer): (Option<SocketAddr>, Option<&str>),
        room: usize,
    ) -> Result<Option<Upstream>, Status> {
        let mut patience = Patience::new(None);
        loop {
            let Some(leader) = self.route(&mut patience).await? else { return Ok(None) };
            let opened = self.open(&leader, metadata, (peer, indexer), room);
            let opened = match tokio::time::timeout(OPEN_WITHIN, opened).await {
                Ok(opened) => opened,
                Err(_) => Err(Status::unavailable("the leader does not open the stream")),
            };
            match opened {
                Ok(upstream) => return Ok(Some(upstream)),
                Err(status) if may_open_again(&status) && patience.wait().await => {}
                Err(status) => return Err(status),
            }
        }
    }

    async fn open(
        &self,
        leader: &Leader,
        metadata: &HeaderMap,
        (peer, indexer): (Option<SocketAddr>, Option<&str>),
        room: usize,
    ) -> Result<Upstream, Status> {
        let (connection, place) = self.streams.place(leader.id, || self.new_connection(leader))?;
        let (batches, sent) = mpsc::channel(room);
        let sent = futures_util::stream::unfold(sent, |mut sent| async {
            let batch = sent.recv().await?;
            Some((batch, sent))
        });
        let mut request = Request::new(sent);
        let mut headers = passed_on(metadata);
        self.add_origin(&mut headers, leader, peer, indexer);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        self.forwarded.inc();
        let origin = self.uri(leader, PathAndQuery::from_static("/"))?;
        let mut client = SessionControlClient::with_origin(connection, origin);
        let events = client.attach(request).await?.into_inner();
        Ok(Upstream { batches, events, _place: place })
    }
}
