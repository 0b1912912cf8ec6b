//! The stream of server-sent events.
//!
//! Each listener polls the server four times a second, and sends what changed since its last poll. A slow
//! listener misses events and delays nobody else. All listeners share one snapshot.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{HeaderName, HeaderValue};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Interval, MissedTickBehavior};

use super::api::edge::{Failure, json_of};
use super::api::model::{AuditEntry, Refusal};
use super::snapshot::Snapshot;
use super::state::Admin;
use crate::operator::OperatorEvent;

/// How often a listener polls for changes.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// The most refusals that a listener sends after one poll.
const REFUSALS_PER_POLL: usize = 5;

/// How often an idle stream sends a comment, to show that the server is there.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How long a client that lost the stream waits before it reconnects.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// Tells proxies not to buffer the stream: events would arrive late.
const NO_BUFFERING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// One open stream of events.
struct Listener {
    admin: Arc<Admin>,
    operator_events: Receiver<OperatorEvent>,
    polls: Interval,
    /// The snapshot that was sent last.
    snapshot: Arc<Snapshot>,
    /// The number of the latest refusal at the last poll.
    refusals: u64,
    /// Events that are still to be sent, in reverse order.
    waiting: Vec<sse::Event>,
}

/// Answers with a stream of events.
pub(super) async fn listen(admin: Arc<Admin>) -> Result<Response, Failure> {
    // Subscribes before the first snapshot: an event in between is sent twice, and none is missed.
    let (operator_events, refusals) = (admin.operator.subscribe(), admin.refusals.recorded());
    let snapshot = admin.snapshot().await?;
    let mut polls = tokio::time::interval(POLL_EVERY);
    polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let first = event("overview", &snapshot.overview).retry(RECONNECT_AFTER);
    let listener =
        Listener { admin, operator_events, polls, snapshot, refusals, waiting: vec![first] };
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("the server is there");
    Ok(([NO_BUFFERING], Sse::new(listener.events()).keep_alive(heartbeat)).into_response())
}

impl Listener {
    fn events(self) -> impl Stream<Item = Result<sse::Event, Infallible>> {
        stream::unfold(self, |mut listener| async move {
            let event = listener.next().await?;
            Some((Ok(event), listener))
        })
    }

    /// The next event; `None` once the server stops.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.waiting.pop() {
                return Some(event);
            }
            if self.admin.fleet.as_ref().is_some_and(|fleet| !fleet.leads()) {
                // The client comes again, and its stream is passed on to the leader.
                return None;
            }
            let received = tokio::select! {
                received = self.operator_events.recv() => received,
                _ = self.polls.tick() => {
                    self.poll().await;
                    continue;
                }
            };
            match received {
                Ok(OperatorEvent::Audit(entry)) => {
                    return Some(event("audit", &AuditEntry::from(entry)));
                }
                Ok(OperatorEvent::Policy(status)) => {
                    return Some(event("policy", &status));
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Collects the events since the last poll.
    async fn poll(&mut self) {
        if self.admin.is_outdated(&self.snapshot)
            // While the store cannot be read there is no new snapshot. The one before said so already.
            && let Ok(snapshot) = self.admin.snapshot().await
            && snapshot.overview.revision != self.snapshot.overview.revision
        {
            self.waiting.push(event("overview", &snapshot.overview));
            self.snapshot = snapshot;
        }
        let recorded = self.admin.refusals.recorded();
        if recorded != self.refusals {
            let news = self.admin.refusals.since(self.refusals, REFUSALS_PER_POLL);
            self.refusals = recorded;
            self.waiting.extend(
                news.iter().rev().map(|refused| event("refusal", &Refusal::from(&**refused))),
            );
        }
    }
}

fn event(name: &str, data: &impl Serialize) -> sse::Event {
    let event = sse::Event::default().event(name);
    event.data(json_of(data))
}
