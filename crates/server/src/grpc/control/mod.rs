//! `tgm.session.v1.SessionControl`: keep-alives in batches, and revocations at once.
//!
//! A stream has one task, which reads batches and answers them, and an outbox, which the task and
//! the store fill and the connection reads. The task never waits for the reader: keep-alives that
//! arrived count, whether their answers are read or not.

mod outbox;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{Stream, StreamExt as _};
use lease::LeaseId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};
use wire::control::AttachRequest;
use wire::control::session_control_server::SessionControl;

use policy::Indexer;
use store::{Attachment, KeptBatch, Store};
pub(crate) use wire::control::session_control_server::SERVICE_NAME as SESSION_CONTROL;

use crate::bounds::{Connection, reset_call_by};
use crate::live::Live;
use crate::metrics::{CallCounters, GaugeGuard, Method, StreamCounters};
use outbox::{End, Outbox, Reader};

/// The most keys of one batch.
const MAX_KEYS: usize = 1_000;

/// A stream without a batch for this long is ended. A client that holds anything sends some every
/// few seconds, and one that holds nothing may attach again.
const IDLE: Duration = Duration::from_secs(600);

/// How long a stream goes on after the notice that the server is about to stop.
const AFTER_NOTICE: Duration = Duration::from_secs(1);

/// How long the last status of a stream waits for its reader before the stream is reset.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a stop waits until every stream has sent its notice.
const ANNOUNCEMENT: Duration = Duration::from_millis(250);

/// Who attaches: the key that the caller showed, to be looked at again with every batch, since the
/// policy may have changed; and the connection, whose memory the stream takes up.
#[derive(Clone)]
pub(crate) struct ShownKey {
    key: Option<Box<[u8]>>,
    connection: Option<Arc<Connection>>,
}

impl ShownKey {
    pub(crate) fn new(key: Option<&[u8]>, connection: Option<Arc<Connection>>) -> Self {
        Self { key: key.map(Into::into), connection }
    }
}

impl fmt::Debug for ShownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShownKey([REDACTED])")
    }
}

/// Tells every attached stream that the server is about to stop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Farewell {
    begun: CancellationToken,
    /// Has a token for each stream that has not sent the notice.
    untold: TaskTracker,
}

impl Farewell {
    /// Sends the notice, and waits, not for long, until it is on its way everywhere.
    pub(crate) async fn announce(&self) {
        self.begun.cancel();
        self.untold.close();
        if timeout(ANNOUNCEMENT, self.untold.wait()).await.is_err() {
            tracing::debug!(streams = self.untold.len(), "streams that do not read got no notice");
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
    farewell: Farewell,
}

impl Control {
    /// At most `max_streams` are attached at once.
    pub(crate) fn new(
        store: Arc<Store>,
        live: Arc<ArcSwap<Live>>,
        (calls, streams): (CallCounters, StreamCounters),
        max_streams: usize,
        farewell: Farewell,
    ) -> Self {
        let places = Arc::new(Semaphore::new(max_streams));
        Self { store, live, calls, streams, places, farewell }
    }

    /// Takes in one stream: what serves it, and what its client reads.
    fn open(&self, key: ShownKey) -> Result<(Attached, Reader), Status> {
        if self.farewell.begun.is_cancelled() {
            return Err(stopping());
        }
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| Status::unavailable("too many streams are attached"))?;
        let (outbox, reader) = Outbox::new(self.streams.pushed.clone(), key.connection.clone());
        let attached = Attached {
            attachment: self.store.attach(outbox.clone()),
            store: self.store.clone(),
            live: self.live.clone(),
            calls: self.calls.clone(),
            key,
            outbox,
            reset: CancellationToken::new(),
            stopping: self.farewell.begun.clone(),
            untold: Some(self.farewell.untold.token()),
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
        let key = request.extensions().get::<ShownKey>().cloned();
        let key = key.ok_or_else(|| Status::unauthenticated("nobody looked who calls"))?;
        let (attached, reader) = self.open(key)?;
        reset_call_by(attached.reset.clone());
        tokio::spawn(attached.drive(request.into_inner()));
        Ok(Response::new(reader))
    }
}

/// One attached stream.
#[derive(Debug)]
struct Attached {
    attachment: Attachment,
    store: Arc<Store>,
    live: Arc<ArcSwap<Live>>,
    calls: CallCounters,
    key: ShownKey,
    outbox: Arc<Outbox>,
    /// Cancelled to reset the stream of a reader that does not even read its end.
    reset: CancellationToken,
    stopping: CancellationToken,
    untold: Option<TaskTrackerToken>,
    /// Its place among those that may be attached, and among those that are.
    _place: (OwnedSemaphorePermit, GaugeGuard),
}

impl Attached {
    /// Serves the stream until it ends, and then sees to it that it is gone.
    async fn drive(mut self, batches: impl Stream<Item = Result<AttachRequest, Status>> + Unpin) {
        let outbox = self.outbox.clone();
        let end = tokio::select! {
            end = self.serve(batches) => end,
            // Either way it knows its end already.
            () = outbox.overrun() => End::Done,
            () = outbox.left() => return,
        };
        // Whoever is told from now on is told by other means.
        drop(self.attachment);
        drop(self.untold);
        outbox.close(end);
        tokio::select! {
            () = outbox.left() => {}
            () = sleep(LAST_WORDS) => self.reset.cancel(),
        }
    }

    /// Answers batches until the client, the server or the time ends it.
    async fn serve(
        &mut self,
        mut batches: impl Stream<Item = Result<AttachRequest, Status>> + Unpin,
    ) -> End {
        let mut deadline = Instant::now() + IDLE;
        loop {
            let stopping = self.stopping.clone();
            tokio::select! {
                biased;
                () = stopping.cancelled(), if self.untold.is_some() => {
                    if let Some(untold) = self.untold.take() {
                        self.outbox.announce(untold);
                    }
                    deadline = Instant::now() + AFTER_NOTICE;
                }
                () = sleep_until(deadline) => {
                    return End::Status(match self.untold {
                        Some(_) => Status::unavailable("no batch came for ten minutes"),
                        None => self::stopping(),
                    });
                }
                batch = batches.next() => {
                    let batch = match batch {
                        Some(Ok(batch)) => batch,
                        Some(Err(error)) => return End::Status(broken(&error)),
                        None => return End::Done,
                    };
                    if let Err(status) = self.answer(batch).await {
                        return End::Status(status);
                    }
                    if self.untold.is_some() {
                        deadline = Instant::now() + IDLE;
                    }
                }
            }
        }
    }

    /// Keeps the leases of one batch alive.
    async fn answer(&self, batch: AttachRequest) -> Result<(), Status> {
        let began = Instant::now();
        let AttachRequest { batch, worker_keys: keys } = batch;
        if keys.len() > MAX_KEYS {
            let problem = format!("worker_keys are {}, and may be {MAX_KEYS}", keys.len());
            return Err(Status::invalid_argument(problem));
        }
        let ids: Vec<_> = keys.iter().map(|key| key.parse::<LeaseId>().ok()).collect();
        let kept = {
            let live = self.live.load();
            let caller = live.policy.identify(self.key.key.as_deref());
            let caller = caller.map_err(|error| Status::unauthenticated(error.to_string()))?;
            let caller = caller.map(Indexer::name);
            self.store.keep_alive_batch(&ids, caller, &self.attachment)
        };
        let kept: KeptBatch = kept.await;
        self.calls.count_batch(ids.len(), &kept);
        self.calls.by_method.answered(Method::Attach, began.into_std());
        self.outbox.answer(batch, kept);
        // Many small batches may be here already: their answers are sent before there are too many.
        tokio::task::yield_now().await;
        Ok(())
    }
}

fn stopping() -> Status {
    Status::unavailable("the server is stopping")
}

/// The end of a stream whose batches cannot be read any more.
fn broken(error: &Status) -> Status {
    match error.code() {
        // A message that says it is compressed where no header says how, or has a flag that is none.
        Code::Internal if error.message().starts_with("protocol error") => {
            Status::internal(error.message())
        }
        Code::InvalidArgument => {
            Status::invalid_argument(format!("a batch cannot be read: {}", error.message()))
        }
        // As tonic says of a message that is too large, and of one that cannot be decoded.
        Code::OutOfRange | Code::Internal => {
            Status::invalid_argument(format!("a batch cannot be read: {}", error.message()))
        }
        Code::Unimplemented => Status::unimplemented(error.message()),
        _ => Status::cancelled("the stream broke"),
    }
}

#[cfg(test)]
mod tests;
