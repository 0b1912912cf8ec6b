//! A client with an open `Attach` stream.

use std::time::Duration;

use tgm_session_server::Running;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use wire::control::attach_response::Event;
use wire::control::session_control_client::SessionControlClient;
use wire::control::{AttachRequest, AttachResponse, BatchAnswer, Reason, Revocation};

use crate::harness::{TestServer, channel, get};

/// One `Attach` stream.
pub(crate) struct Attached {
    pub(crate) batches: mpsc::Sender<AttachRequest>,
    pub(crate) events: Streaming<AttachResponse>,
    number: u64,
}

impl Attached {
    pub(crate) async fn to(server: &TestServer) -> Self {
        Self::over(channel(server.running.grpc_address()), None).await.unwrap()
    }

    pub(crate) async fn with_key(server: &TestServer, key: &str) -> Result<Self, Status> {
        Self::over(channel(server.running.grpc_address()), Some(key)).await
    }

    pub(crate) async fn over(channel: Channel, key: Option<&str>) -> Result<Self, Status> {
        Self::of(SessionControlClient::new(channel), key).await
    }

    pub(crate) async fn of(
        mut client: SessionControlClient<Channel>,
        key: Option<&str>,
    ) -> Result<Self, Status> {
        let (batches, sent) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(sent));
        if let Some(key) = key {
            request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        }
        let events = client.attach(request).await?.into_inner();
        Ok(Self { batches, events, number: 0 })
    }

    pub(crate) async fn send(&mut self, keys: &[&str]) {
        self.number += 1;
        let worker_keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.batches.send(AttachRequest { batch: self.number, worker_keys }).await.unwrap();
    }

    /// The next event from the server; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Status> {
        let next = tokio::time::timeout(Duration::from_secs(30), self.events.message());
        let next = next.await.expect("the server says something in time")?;
        Ok(next.map(|response| response.event.unwrap()))
    }

    /// Sends a batch of keep-alives and returns its answer, which must be the next event.
    pub(crate) async fn keep_alive(&mut self, keys: &[&str]) -> BatchAnswer {
        self.send(keys).await;
        self.answer().await
    }

    pub(crate) async fn answer(&mut self) -> BatchAnswer {
        let event = self.next().await.unwrap();
        let Some(Event::Answer(answer)) = event else { panic!("{event:?}") };
        assert_eq!(answer.batch, self.number);
        answer
    }

    /// Keeps leases alive. All of them must be live.
    pub(crate) async fn name(&mut self, keys: &[&str]) {
        let answer = self.keep_alive(keys).await;
        assert_eq!(answer, BatchAnswer { batch: self.number, ..BatchAnswer::default() });
    }

    /// The key and the reason of a revocation, which must come next.
    pub(crate) async fn revoked(&mut self) -> (String, Reason) {
        let revoked = self.pushed().await;
        assert!(!revoked.message.is_empty());
        (revoked.worker_key.clone(), revoked.reason())
    }

    /// A revocation, which must come next.
    pub(crate) async fn pushed(&mut self) -> Revocation {
        let event = self.next().await.unwrap();
        let Some(Event::Revoked(revoked)) = event else { panic!("{event:?}") };
        revoked
    }

    /// Checks that nothing was pushed: the answer to another batch comes next.
    pub(crate) async fn nothing_was_pushed(&mut self) {
        self.keep_alive(&[]).await;
    }
}

/// The value of a metric.
pub(crate) async fn metric(running: &Running, name: &str) -> u64 {
    let (status, page) = get(running.admin_address(), "/metrics", "").await;
    assert_eq!(status, 200);
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}
