//! Places of the admin port: who may have one, and who has to go when there are none.
//!
//! A connection without a request costs little and says nothing about what it is for, so all are let
//! in, each for a short time, and the one that waited longest is cut when there are too many. Only
//! a request that may be asked takes a place, which it has until its answer is in the hands of the
//! system. Probes take none: they are answered at once, whatever else is full.

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

/// The most connections without a place at once: silent ones, idle ones, probes and refused ones.
pub(super) const MAX_WAITING: usize = 512;

/// How long a connection may take to the end of its first headers, and to that of later headers
/// once they began.
pub(super) const HEADERS_WITHIN: Duration = Duration::from_secs(2);

/// How long a connection may be silent between two requests.
pub(super) const IDLE: Duration = Duration::from_secs(60);

/// How long a request without a place may take, until its answer is sent.
const PLACELESS_WITHIN: Duration = Duration::from_secs(5);

/// What a request that needs a place is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The metrics.
    Metrics,
    /// The stream of events.
    Events,
    /// A file of the page.
    Page,
    /// Anything else: the API.
    Api,
}

impl Kind {
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

    /// How long a request may take, from its headers until its answer is sent.
    const fn within(self) -> Option<Duration> {
        match self {
            Self::Metrics | Self::Page => Some(Duration::from_secs(30)),
            Self::Api => Some(Duration::from_secs(60)),
            // It ends when its reader stops to read.
            Self::Events => None,
        }
    }

    fn full(self) -> String {
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
    while kind < Kind::ALL.len() {
        most += Kind::ALL[kind].places();
        kind += 1;
    }
    most
};

/// What is said about open files counts with as many.
const _: () = assert!(MAX_CONNECTIONS == ADMIN_CONNECTIONS);

/// The places of one admin port.
#[derive(Debug)]
pub(super) struct Places {
    waiting: Mutex<Waiting>,
    kinds: [Arc<Semaphore>; Kind::ALL.len()],
}

/// The connections without a place, the one that waits longest first.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    connections: BTreeMap<u64, CancellationToken>,
}

impl Places {
    pub(super) fn new() -> Arc<Self> {
        let kinds = Kind::ALL.map(|kind| Arc::new(Semaphore::new(kind.places())));
        Arc::new(Self { waiting: Mutex::default(), kinds })
    }

    /// Lets a connection in, and cuts the one that waits longest if there are too many.
    pub(super) fn admit(self: &Arc<Self>) -> Arc<Connection> {
        let cut = CancellationToken::new();
        let state = State {
            stage: Stage::Silent,
            by: Some(Instant::now() + HEADERS_WITHIN),
            waits: Some(self.wait(&cut)),
            place: None,
        };
        Arc::new(Connection { places: self.clone(), cut, state: Mutex::new(state) })
    }

    fn wait(&self, cut: &CancellationToken) -> u64 {
        let mut waiting = self.waiting.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.connections.insert(number, cut.clone());
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

/// One connection, as its own parts and the places see it.
#[derive(Debug)]
pub(super) struct Connection {
    places: Arc<Places>,
    cut: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// When it has to be further.
    by: Option<Instant>,
    /// Its number among those without a place.
    waits: Option<u64>,
    place: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of a request is there.
    Silent,
    /// A part of the headers is there.
    Heard,
    /// There is a request.
    Asked,
    /// The whole answer was made, and may wait to be sent.
    Answered,
}

impl Connection {
    /// Cancelled when the connection has to go.
    pub(super) const fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// When the connection has to be further than it is now, if there is such a time.
    pub(super) fn by(&self) -> Option<Instant> {
        self.state.lock().by
    }

    /// Bytes arrived.
    pub(super) fn heard(&self) {
        let mut state = self.state.lock();
        if state.stage == Stage::Silent {
            state.stage = Stage::Heard;
            let by = Instant::now() + HEADERS_WITHIN;
            state.by = Some(state.by.map_or(by, |before| before.min(by)));
        }
    }

    /// A request is there. Its answer has to be kept in what this returns.
    pub(super) fn asked(self: &Arc<Self>) -> Answering {
        let mut state = self.state.lock();
        state.stage = Stage::Asked;
        state.by = Some(Instant::now() + PLACELESS_WITHIN);
        // Requests may be sent ahead: the answer before may not be sent yet.
        if state.place.take().is_some() {
            state.waits = Some(self.places.wait(&self.cut));
        }
        Answering(self.clone())
    }

    /// Takes a place for the request. False when there is none.
    fn take_place(&self, kind: Kind) -> bool {
        let Ok(place) = self.places.kinds[kind as usize].clone().try_acquire_owned() else {
            return false;
        };
        let mut state = self.state.lock();
        state.by = kind.within().map(|within| Instant::now() + within);
        state.place = Some(place);
        self.places.stop_waiting(state.waits.take());
        true
    }

    /// All that there was to send is in the hands of the system.
    pub(super) fn flushed(&self) {
        let mut state = self.state.lock();
        if state.stage == Stage::Answered {
            state.stage = Stage::Silent;
            state.by = Some(Instant::now() + IDLE);
            state.place = None;
            self.places.stop_waiting(state.waits.take());
            state.waits = Some(self.places.wait(&self.cut));
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.places.stop_waiting(self.state.get_mut().waits);
    }
}

/// A request that is not answered to the end.
#[derive(Debug)]
pub(super) struct Answering(Arc<Connection>);

impl Answering {
    /// The same answer, which counts as made when `body` is at its end.
    pub(super) fn with(self, body: Body) -> Answer {
        Answer { body, _answering: self }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.state.lock().stage = Stage::Answered;
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Answer {
    body: Body,
    _answering: Answering,
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

/// Lets a request pass that finds a place, and answers 503 to one that does not.
pub(in crate::admin) async fn place(request: Request, next: Next) -> Response {
    let kind = Kind::of(request.uri().path());
    let connection = request.extensions().get::<Arc<Connection>>();
    if connection.expect("the port puts it into every request").take_place(kind) {
        return next.run(request).await;
    }
    let close = [(CONNECTION, HeaderValue::from_static("close"))];
    (close, Failure::new(StatusCode::SERVICE_UNAVAILABLE, kind.full())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_connection_that_waits_longest_is_cut_and_one_with_a_place_is_not() {
        let places = Places::new();
        let works = places.admit();
        let answering = works.asked();
        assert!(works.take_place(Kind::Api));
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| places.admit()).collect();
        assert!(!waiting[0].cut().is_cancelled());
        let newest = places.admit();
        assert!(waiting[0].cut().is_cancelled() && !waiting[1].cut().is_cancelled());
        // Once it is answered it waits like all others, as the newest of them.
        drop(answering);
        works.flushed();
        assert!(waiting[1].cut().is_cancelled() && !waiting[2].cut().is_cancelled());
        assert!(!works.cut().is_cancelled() && !newest.cut().is_cancelled());
        // Whoever goes makes room.
        waiting.truncate(10);
        let more: Vec<_> = (0..MAX_WAITING - 10).map(|_| places.admit()).collect();
        assert!(!waiting[2].cut().is_cancelled() && !more[0].cut().is_cancelled());
    }

    #[tokio::test]
    async fn a_place_is_held_until_the_answer_is_sent_and_not_until_it_is_made() {
        let places = Places::new();
        let held: Vec<_> = (0..Kind::Metrics.places()).map(|_| places.admit()).collect();
        let answering: Vec<_> = held.iter().map(Connection::asked).collect();
        assert!(held.iter().all(|connection| connection.take_place(Kind::Metrics)));
        let next = places.admit();
        let _asked = next.asked();
        assert!(!next.take_place(Kind::Metrics));
        assert!(next.take_place(Kind::Api), "kinds do not share their places");
        // Bytes that are flushed before the end of the answer do not end it.
        held[0].flushed();
        assert!(!next.take_place(Kind::Metrics));
        drop(answering);
        assert!(!next.take_place(Kind::Metrics));
        held[0].flushed();
        assert!(next.take_place(Kind::Metrics));
    }
}
