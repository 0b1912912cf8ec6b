//! What happens, as server-sent events.
//!
//! Each listener looks for itself four times a second and at what it was told last, so one that is
//! slow misses events and holds up nobody. The picture that they look at is one for all.

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
use super::api::model::{AuditEntry, PolicyStatus, Refusal};
use super::picture::Picture;
use super::state::Admin;
use crate::operator::OperatorEvent;

/// How often a listener looks for something new.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The most refusals that are told at a look.
const REFUSALS_AT_A_LOOK: usize = 5;

/// How often a silent stream says that the server is there.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How soon a client that lost the stream may come back.
const COME_BACK_AFTER: Duration = Duration::from_secs(1);

/// Proxies that gather answers would hold back events.
const NO_GATHERING: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// One who listens.
struct Listener {
    admin: Arc<Admin>,
    done: Receiver<OperatorEvent>,
    looks: Interval,
    /// What was told last.
    picture: Arc<Picture>,
    /// The number of the latest refusal at the last look.
    refusals: u64,
    /// Found at a look, and still to be told, the first last.
    waiting: Vec<sse::Event>,
}

/// Answers with a stream of events.
pub(super) async fn listen(admin: Arc<Admin>) -> Result<Response, Failure> {
    // Subscribed before the first look: what happens in between is told twice and never missed.
    let (done, refusals) = (admin.operator.subscribe(), admin.refusals.noted());
    let picture = admin.picture().await?;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let first = event("overview", &picture.overview).retry(COME_BACK_AFTER);
    let listener = Listener { admin, done, looks, picture, refusals, waiting: vec![first] };
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("the server is there");
    Ok(([NO_GATHERING], Sse::new(listener.events()).keep_alive(heartbeat)).into_response())
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
            let done = tokio::select! {
                done = self.done.recv() => done,
                _ = self.looks.tick() => {
                    self.look().await;
                    continue;
                }
            };
            match done {
                Ok(OperatorEvent::Audit(entry)) => {
                    return Some(event("audit", &AuditEntry::from(entry)));
                }
                Ok(OperatorEvent::Policy(status)) => {
                    return Some(event("policy", &PolicyStatus::from(status)));
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Collects what there is to be told.
    async fn look(&mut self) {
        if self.admin.is_news(&self.picture)
            // A store that cannot be read shows nothing new; that it cannot, it showed before.
            && let Ok(picture) = self.admin.picture().await
            && picture.overview.revision != self.picture.overview.revision
        {
            self.waiting.push(event("overview", &picture.overview));
            self.picture = picture;
        }
        let noted = self.admin.refusals.noted();
        if noted != self.refusals {
            let news = self.admin.refusals.since(self.refusals, REFUSALS_AT_A_LOOK);
            self.refusals = noted;
            self.waiting
                .extend(news.iter().rev().map(|noted| event("refusal", &Refusal::from(&**noted))));
        }
    }
}

fn event(name: &str, data: &impl Serialize) -> sse::Event {
    let event = sse::Event::default().event(name);
    event.data(json_of(data))
}
