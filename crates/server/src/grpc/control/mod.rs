//! `tgm.session.v1.SessionControl`: keep-alives in batches, and pushed revocations.
//!
//! A stream has a task and an outbox. The task reads batches and puts answers into the outbox. The
//! store puts revocations into it, and the connection reads it. The task never waits for the reader, so
//! keep-alives count when they arrive, whether their answers are read or not.

mod outbox;
mod relay;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt as _};
use http::HeaderMap;
use lease::LeaseId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};
use wire::control::AttachRequest;
use wire::control::session_control_server::SessionControl;

use policy::Indexer;
use store::{Attachment, NotExtended, Store};
pub(crate) use wire::control::session_control_server::SERVICE_NAME as SESSION_CONTROL;

use crate::bounds::{Connection, reset_call_by};
use crate::fleet::{Fleet, answer_not_leading};
use crate::live::Live;
use crate::metrics::{CallCounters, GaugeGuard, Method, StreamCounters};
use outbox::{Outbox, Reader};
use relay::{Happened, Relay};

/// The most keys of one batch.
const MAX_KEYS: usize = 1_000;

/// The idle timeout: a stream without a batch for this long is ended. A client with leases sends
/// batches every few seconds, and a client without leases can attach again.
const IDLE: Duration = Duration::from_secs(600);

/// How long a stream continues after the notice that the server is about to stop.
const AFTER_NOTICE: Duration = Duration::from_secs(1);

/// How long the reader of a stream may take to read the final status before the stream is reset.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a stop waits until all streams have sent their notices.
const NOTICE_TIMEOUT: Duration = Duration::from_millis(250);

/// The caller of a stream: its key, and its connection. The key is checked again with each batch, because
/// the policy may have changed. The connection accounts for the memory of the stream.
#[derive(Clone)]
pub(crate) struct AttachedCaller {
    key: Option<Box<[u8]>>,
    connection: Option<Arc<Connection>>,
    via: Via,
}

/// How a stream reaches the leader of a fleet.
#[derive(Clone, Debug)]
pub(crate) enum Via {
    /// No other server uses the store.
    Alone,
    /// Another server of the fleet has passed the stream on.
    PassedOn,
    /// This server may have to pass it on, with this metadata.
    Fleet(Arc<Fleet>, Arc<HeaderMap>),
}

impl AttachedCaller {
    pub(crate) fn new(key: Option<&[u8]>, connection: Option<Arc<Connection>>, via: Via) -> Self {
        Self { key: key.map(Into::into), connection, via }
    }
}

impl fmt::Debug for AttachedCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttachedCaller([REDACTED])")
    }
}

/// The notice to every attached stream that the server is about to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopNotice {
    begun: CancellationToken,
    /// Has a token for each stream that has not sent its notice.
    unsent: TaskTracker,
}

impl StopNotice {
    /// Cancelled when the server begins to stop.
    pub(crate) fn begun(&self) -> CancellationToken {
        self.begun.clone()
    }

    /// Sends the notice, and waits up to a quarter of a second until all streams have sent it.
    pub(crate) async fn send(&self) {
        self.begun.cancel();
        self.unsent.close();
        if timeout(NOTICE_TIMEOUT, self.unsent.wait()).await.is_err() {
            tracing::debug!(streams = self.unsent.len(), "streams that do not read got no notice");
        }
    }
}

/// `SessionControl` over a store.
#[derive(Debug)]
pub(crate) struct Control {
    store: Arc<Store>,
    live: Arc<ArcSwap<Live>>,
    calls: CallCounters,
    streams: StreamCounters,
    places: Arc<Semaphore>,
    stop_notice: StopNotice,
}

impl Control {
    /// At most `max_streams` streams are attached at once.
    pub(crate) fn new(
        store: Arc<Store>,
        live: Arc<ArcSwap<Live>>,
        (calls, streams): (CallCounters, StreamCounters),
        max_streams: usize,
        stop_notice: StopNotice,
    ) -> Self {
        let places = Arc::new(Semaphore::new(max_streams));
        Self { store, live, calls, streams, places, stop_notice }
    }

    /// Opens a stream: returns the task that serves it, and the reader for its client.
    fn open(&self, caller: AttachedCaller) -> Result<(AttachedStream, Reader), Status> {
        if self.stop_notice.begun.is_cancelled() {
            return Err(stopping());
        }
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| Status::unavailable("too many streams are attached"))?;
        let (outbox, reader) = Outbox::new(self.streams.pushed.clone(), caller.connection.clone());
        let relay = match &caller.via {
            Via::Alone | Via::PassedOn => None,
            Via::Fleet(fleet, metadata) => {
                let live = self.live.load();
                let indexer = live.policy.identify(caller.key.as_deref()).ok().flatten();
                let (fleet, metadata) = (fleet.clone(), metadata.clone());
                let indexer = indexer.map(Indexer::name);
                Some(Relay::new(fleet, metadata, indexer, caller.connection.clone()))
            }
        };
        let attached = AttachedStream {
            relay,
            attachment: self.store.attach(outbox.clone()),
            store: self.store.clone(),
            live: self.live.clone(),
            calls: self.calls.clone(),
            caller,
            outbox,
            reset: CancellationToken::new(),
            stopping: self.stop_notice.begun.clone(),
            unsent: Some(self.stop_notice.unsent.token()),
            _place: (place, GaugeGuard::new(&self.streams.attached)),
        };
        Ok((attached, reader))
    }
}

#[async_trait]
impl SessionControl for Control {
    type AttachStream = Reader;

    async fn attach(
        &self,
        request: Request<Streaming<AttachRequest>>,
    ) -> Result<Response<Reader>, Status> {
        let caller = request.extensions().get::<AttachedCaller>().cloned();
        let caller =
            caller.ok_or_else(|| Status::unauthenticated("the caller is not identified"))?;
        let (attached, reader) = self.open(caller)?;
        reset_call_by(attached.reset.clone());
        tokio::spawn(attached.run(request.into_inner()));
        Ok(Response::new(reader))
    }
}

/// The task of one attached stream.
#[derive(Debug)]
struct AttachedStream {
    attachment: Attachment,
    store: Arc<Store>,
    live: Arc<ArcSwap<Live>>,
    calls: CallCounters,
    caller: AttachedCaller,
    /// Passes batches on while this server of a fleet does not lead.
    relay: Option<Relay>,
    outbox: Arc<Outbox>,
    /// Cancelled to reset a stream whose reader does not read the final status.
    reset: CancellationToken,
    stopping: CancellationToken,
    unsent: Option<TaskTrackerToken>,
    /// Its place among the streams that may be attached, and its count in the metrics.
    _place: (OwnedSemaphorePermit, GaugeGuard),
}

impl AttachedStream {
    /// Serves the stream until it ends, and then closes or resets it.
    async fn run(mut self, batches: impl Stream<Item = Result<AttachRequest, Status>> + Unpin) {
        let outbox = self.outbox.clone();
        let end = tokio::select! {
            end = self.serve(batches) => end,
            // The outbox has its final status already.
            () = outbox.overflowed() => Ok(()),
            () = outbox.abandoned() => return,
        };
        // No more revocations are pushed to this stream.
        drop(self.attachment);
        drop(self.unsent);
        outbox.close(end);
        tokio::select! {
            () = outbox.abandoned() => {}
            () = sleep(STATUS_TIMEOUT) => self.reset.cancel(),
        }
    }

    /// Answers batches until the client or the server ends the stream, or it times out.
    async fn serve(
        &mut self,
        mut batches: impl Stream<Item = Result<AttachRequest, Status>> + Unpin,
    ) -> Result<(), Status> {
        let mut deadline = Instant::now() + IDLE;
        let is_passed_on = matches!(self.caller.via, Via::PassedOn);
        let mut terms = self.store.terms();
        loop {
            let stopping = self.stopping.clone();
            tokio::select! {
                biased;
                () = stopping.cancelled(), if self.unsent.is_some() => {
                    if let Some(unsent) = self.unsent.take() {
                        self.outbox.announce(unsent);
                    }
                    deadline = Instant::now() + AFTER_NOTICE;
                }
                () = sleep_until(deadline) => {
                    return Err(match self.unsent {
                        Some(_) => Status::unavailable("no batch came for ten minutes"),
                        None => self::stopping(),
                    });
                }
                happened = next_of(&mut self.relay) => self.handle(happened).await?,
                () = stops_leading(&self.store, &mut terms), if is_passed_on => {
                    return Err(answer_not_leading());
                }
                batch = batches.next(), if self.relay.as_ref().is_none_or(Relay::has_room) => {
                    let Some(batch) = batch else { return Ok(()) };
                    let batch = batch.map_err(|error| broken(&error))?;
                    if let Some(batch) = self.answer(batch).await? {
                        self.pass_on(batch)?;
                    }
                    if self.unsent.is_some() {
                        deadline = Instant::now() + IDLE;
                    }
                }
            }
        }
    }

    /// Passes a batch on to the leader. Where there is no memory for it, nothing in it is extended.
    fn pass_on(&mut self, batch: AttachRequest) -> Result<(), Status> {
        let Some(relay) = &mut self.relay else { return Err(answer_not_leading()) };
        if let Err(batch) = relay.pass_on(batch) {
            self.answer_unavailable(&batch);
        }
        Ok(())
    }

    /// Handles what happened on the way to the leader.
    async fn handle(&mut self, happened: Happened) -> Result<(), Status> {
        match happened {
            Happened::Nothing => {}
            Happened::Event(event) => self.outbox.pass_on(event),
            Happened::LeadsHere(batches) => {
                for batch in batches {
                    if let Some(batch) = self.answer(batch).await? {
                        self.pass_on(batch)?;
                    }
                }
            }
            Happened::NotHandled(batches) => {
                batches.iter().for_each(|batch| self.answer_unavailable(batch));
            }
            Happened::Ended(status) => return Err(status),
        }
        Ok(())
    }

    /// Answers that nothing was done about the leases of a batch.
    fn answer_unavailable(&self, batch: &AttachRequest) {
        let places = u32::try_from(batch.worker_keys.len()).unwrap_or(u32::MAX);
        let kept = NotExtended { unavailable: (0..places).collect(), ..NotExtended::default() };
        self.calls.count_batch(batch.worker_keys.len(), &kept);
        self.outbox.answer(batch.batch, kept);
    }

    /// Keeps the leases of one batch alive, and answers. Returns the batch where this server of a fleet
    /// does not lead.
    async fn answer(&mut self, request: AttachRequest) -> Result<Option<AttachRequest>, Status> {
        let began = Instant::now();
        let AttachRequest { batch, worker_keys: keys } = &request;
        if keys.len() > MAX_KEYS {
            let problem = format!("worker_keys are {}, and may be {MAX_KEYS}", keys.len());
            return Err(Status::invalid_argument(problem));
        }
        if !self.store.leads() {
            return Ok(Some(request));
        }
        let ids: Vec<_> = keys.iter().map(|key| key.parse::<LeaseId>().ok()).collect();
        let kept = {
            let live = self.live.load();
            let caller = live.policy.identify(self.caller.key.as_deref());
            let caller = caller.map_err(|error| Status::unauthenticated(error.to_string()))?;
            let caller = caller.map(Indexer::name);
            self.store.keep_alive_batch(&ids, caller, &self.attachment)
        };
        let kept: NotExtended = kept.await;
        if kept.unavailable.len() == ids.len() && !ids.is_empty() && !self.store.leads() {
            return Ok(Some(request));
        }
        self.calls.count_batch(ids.len(), &kept);
        self.calls.by_method.answered(Method::Attach, began.into_std());
        self.outbox.answer(*batch, kept);
        // Many small batches may have arrived. This lets the connection send answers in between.
        tokio::task::yield_now().await;
        Ok(None)
    }
}

/// What happens next on the way to the leader. Never returns where the stream is not passed on.
async fn next_of(relay: &mut Option<Relay>) -> Happened {
    match relay {
        Some(relay) => relay.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until this server does not lead.
async fn stops_leading(store: &Store, terms: &mut watch::Receiver<Option<u64>>) {
    while store.leads() {
        if terms.changed().await.is_err() {
            return;
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping")
}

/// The final status of a stream after an error of its batches.
fn broken(error: &Status) -> Status {
    match error.code() {
        // A message is compressed but no header names the compression, or its flag is invalid.
        Code::Internal if error.message().starts_with("protocol error") => {
            Status::internal(error.message())
        }
        Code::InvalidArgument => {
            Status::invalid_argument(format!("a batch cannot be read: {}", error.message()))
        }
        // The codes of tonic for a message that is too large, and for one that cannot be decoded.
        Code::OutOfRange | Code::Internal => {
            Status::invalid_argument(format!("a batch cannot be read: {}", error.message()))
        }
        Code::Unimplemented => Status::unimplemented(error.message()),
        _ => Status::cancelled("the stream broke"),
    }
}

#[cfg(test)]
mod tests;
