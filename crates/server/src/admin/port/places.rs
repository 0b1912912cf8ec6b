//! AdminPlaces of the admin port: how many requests are answered at once, and how many connections may be
//! open without a request.
//!
//! A connection without a request costs little, and its purpose is not known yet. So every connection is
//! accepted, for a short time, and the one that has waited longest is evicted when there are too many.
//! A request takes a place once it is authorized, and holds it until its answer is written to the
//! socket. Probes take no place: they are answered at once, whatever else is full.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::api::edge::Failure;
use crate::config::limits::ADMIN_CONNECTIONS;

/// The most connections without a place at once: new ones, idle ones, probes and refused requests.
pub(super) const MAX_WAITING: usize = 512;

/// How long the headers of a request may take: those of the first request from the start of the
/// connection, those of later requests from their first byte.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection may be idle between two requests.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request without a place may take until its answer is sent.
const PLACELESS_TIMEOUT: Duration = Duration::from_secs(5);

/// The kinds of requests that need a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestKind {
    /// The metrics.
    Metrics,
    /// The stream of events.
    Events,
    /// A file of the page.
    Page,
    /// Anything else: the API.
    Api,
}

impl RequestKind {
    const ALL: [Self; 4] = [Self::Metrics, Self::Events, Self::Page, Self::Api];

    fn of(path: &str) -> Self {
        match path {
            "/metrics" => Self::Metrics,
            "/api/events" => Self::Events,
            path if path.starts_with("/api") => Self::Api,
            _ => Self::Page,
        }
    }

    /// How many requests of this kind are answered at once.
    const fn places(self) -> usize {
        match self {
            Self::Metrics => 8,
            Self::Events | Self::Page | Self::Api => 64,
        }
    }

    /// How long a request may take from its headers until its answer is sent.
    const fn timeout(self) -> Option<Duration> {
        match self {
            Self::Metrics | Self::Page => Some(Duration::from_secs(30)),
            Self::Api => Some(Duration::from_secs(60)),
            // The stream ends when its reader stops reading.
            Self::Events => None,
        }
    }

    fn no_place_message(self) -> String {
        let places = self.places();
        match self {
            Self::Metrics => format!("{places} read the metrics already"),
            Self::Events => format!("{places} listen to events already"),
            Self::Page => format!("{places} files of the page are being read already"),
            Self::Api => format!("{places} requests are being answered already"),
        }
    }
}

/// The most connections of the admin port at once.
const MAX_CONNECTIONS: usize = {
    let mut most = MAX_WAITING;
    let mut kind = 0;
    while kind < RequestKind::ALL.len() {
        most += RequestKind::ALL[kind].places();
        kind += 1;
    }
    most
};

/// The estimate of open files counts with this number.
const _: () = assert!(MAX_CONNECTIONS == ADMIN_CONNECTIONS);

/// The places of one admin port.
#[derive(Debug)]
pub(super) struct AdminPlaces {
    waiting: Mutex<Waiting>,
    kinds: [Arc<Semaphore>; RequestKind::ALL.len()],
}

/// The connections without a place, by number: the first has waited longest.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

impl AdminPlaces {
    pub(super) fn new() -> Arc<Self> {
        let kinds = RequestKind::ALL.map(|kind| Arc::new(Semaphore::new(kind.places())));
        Arc::new(Self { waiting: Mutex::default(), kinds })
    }

    /// Registers a new connection, and evicts the one that has waited longest if there are too many.
    pub(super) fn admit(self: &Arc<Self>) -> Arc<AdminConnection> {
        let evicted = CancellationToken::new();
        let state = State {
            stage: Stage::Idle,
            deadline: Some(Instant::now() + HEADER_TIMEOUT),
            waiting_number: Some(self.wait(&evicted)),
            place: None,
        };
        Arc::new(AdminConnection { places: self.clone(), evicted, state: Mutex::new(state) })
    }

    /// Adds a connection to those without a place, and returns its number among them.
    fn wait(&self, evicted: &CancellationToken) -> u64 {
        let mut waiting = self.waiting.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.connections.insert(number, evicted.clone());
        if waiting.connections.len() > MAX_WAITING
            && let Some((_, oldest)) = waiting.connections.pop_first()
        {
            drop(waiting);
            oldest.cancel();
        }
        number
    }

    fn stop_waiting(&self, number: Option<u64>) {
        if let Some(number) = number {
            self.waiting.lock().connections.remove(&number);
        }
    }
}

/// The state of one connection, shared by its stream, its requests and the places.
#[derive(Debug)]
pub(super) struct AdminConnection {
    places: Arc<AdminPlaces>,
    evicted: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// When the connection is closed, unless it makes progress before.
    deadline: Option<Instant>,
    /// Its number among the connections without a place.
    waiting_number: Option<u64>,
    place: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No byte of a request has arrived.
    Idle,
    /// A part of the headers has arrived.
    ReadingHeaders,
    /// A request is in flight.
    InFlight,
    /// The whole answer was produced. A part of it may not be sent yet.
    Answered,
}

impl AdminConnection {
    /// Cancelled when the connection is evicted.
    pub(super) const fn evicted(&self) -> &CancellationToken {
        &self.evicted
    }

    /// When the connection is closed unless it makes progress before; `None` when it has no limit.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.state.lock().deadline
    }

    /// Starts the header timeout at the first bytes of a request.
    pub(super) fn bytes_received(&self) {
        let mut state = self.state.lock();
        if state.stage == Stage::Idle {
            state.stage = Stage::ReadingHeaders;
            let deadline = Instant::now() + HEADER_TIMEOUT;
            state.deadline = Some(state.deadline.map_or(deadline, |before| before.min(deadline)));
        }
    }

    /// Marks a request as in flight until the returned guard is dropped, which its answer holds.
    pub(super) fn request_started(self: &Arc<Self>) -> InFlight {
        let mut state = self.state.lock();
        state.stage = Stage::InFlight;
        state.deadline = Some(Instant::now() + PLACELESS_TIMEOUT);
        // With pipelined requests, the answer before may not be sent yet.
        if state.place.take().is_some() {
            state.waiting_number = Some(self.places.wait(&self.evicted));
        }
        InFlight(self.clone())
    }

    /// Takes a place for the request. Returns false when there is none.
    fn take_place(&self, kind: RequestKind) -> bool {
        let Ok(place) = self.places.kinds[kind as usize].clone().try_acquire_owned() else {
            return false;
        };
        let mut state = self.state.lock();
        state.deadline = kind.timeout().map(|timeout| Instant::now() + timeout);
        state.place = Some(place);
        self.places.stop_waiting(state.waiting_number.take());
        true
    }

    /// Frees the place once everything is written to the socket and the answer is complete.
    pub(super) fn flushed(&self) {
        let mut state = self.state.lock();
        if state.stage == Stage::Answered {
            state.stage = Stage::Idle;
            state.deadline = Some(Instant::now() + IDLE_TIMEOUT);
            state.place = None;
            self.places.stop_waiting(state.waiting_number.take());
            state.waiting_number = Some(self.places.wait(&self.evicted));
        }
    }
}

impl Drop for AdminConnection {
    fn drop(&mut self) {
        self.places.stop_waiting(self.state.get_mut().waiting_number);
    }
}

/// Marks a request whose answer is not complete.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AdminConnection>);

impl InFlight {
    /// An answer with this `body`. The answer is complete when the body ends.
    pub(super) fn with(self, body: Body) -> Answer {
        Answer { body, _in_flight: self }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state.lock().stage = Stage::Answered;
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    _in_flight: InFlight,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Takes a place for each request, and answers 503 when there is none.
pub(in crate::admin) async fn take_place(request: Request, next: Next) -> Response {
    let kind = RequestKind::of(request.uri().path());
    let connection = request.extensions().get::<Arc<AdminConnection>>();
    if connection.expect("the port puts it into every request").take_place(kind) {
        return next.run(request).await;
    }
    let close = [(CONNECTION, HeaderValue::from_static("close"))];
    (close, Failure::new(StatusCode::SERVICE_UNAVAILABLE, kind.no_place_message())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_connection_that_waits_longest_is_evicted_and_one_with_a_place_is_not() {
        let places = AdminPlaces::new();
        let works = places.admit();
        let in_flight = works.request_started();
        assert!(works.take_place(RequestKind::Api));
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| places.admit()).collect();
        assert!(!waiting[0].evicted().is_cancelled());
        let newest = places.admit();
        assert!(waiting[0].evicted().is_cancelled() && !waiting[1].evicted().is_cancelled());
        // After its answer, the connection is the newest of the waiting ones.
        drop(in_flight);
        works.flushed();
        assert!(waiting[1].evicted().is_cancelled() && !waiting[2].evicted().is_cancelled());
        assert!(!works.evicted().is_cancelled() && !newest.evicted().is_cancelled());
        // A connection that ends makes room.
        waiting.truncate(10);
        let more: Vec<_> = (0..MAX_WAITING - 10).map(|_| places.admit()).collect();
        assert!(!waiting[2].evicted().is_cancelled() && !more[0].evicted().is_cancelled());
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_answer_is_sent_and_not_until_it_is_made() {
        let places = AdminPlaces::new();
        let held: Vec<_> = (0..RequestKind::Metrics.places()).map(|_| places.admit()).collect();
        let in_flight: Vec<_> = held.iter().map(AdminConnection::request_started).collect();
        assert!(held.iter().all(|connection| connection.take_place(RequestKind::Metrics)));
        let next = places.admit();
        let _in_flight = next.request_started();
        assert!(!next.take_place(RequestKind::Metrics));
        assert!(next.take_place(RequestKind::Api), "kinds do not share their places");
        // Bytes that are flushed before the end of the answer do not end it.
        held[0].flushed();
        assert!(!next.take_place(RequestKind::Metrics));
        drop(in_flight);
        assert!(!next.take_place(RequestKind::Metrics));
        held[0].flushed();
        assert!(next.take_place(RequestKind::Metrics));
    }
}
