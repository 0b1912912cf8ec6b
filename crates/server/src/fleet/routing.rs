//! The servers of a fleet as this one sees them: who leads, and the connections to the leader.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use connect::{Connection, Connector, Host, Protocol, TlsFiles, Way};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Uri};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use store::fleet::{FleetSecret, Leader, LeaderId};
use store::{Store, Unavailable};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::connections::StreamConnections;

/// How long a call is held while no server is known to lead.
const HOLD: Duration = Duration::from_secs(2);

/// How long before its deadline a call that is held is answered.
const ANSWER_BEFORE: Duration = Duration::from_millis(50);

/// How long a leader may take to answer a call after its term.
const ANSWER_AFTER_TERM: Duration = Duration::from_secs(1);

/// How long to wait before a call is passed on again to the same leader, which does not serve yet.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The fleet of this server.
pub(crate) struct Fleet {
    store: Arc<Store>,
    pub(super) secret: HeaderValue,
    pub(super) leader: watch::Receiver<Option<Leader>>,
    pub(super) tls: Option<TlsFiles>,
    /// The connection of each serving thread to the leader of a term.
    connections: Mutex<HashMap<ThreadId, (LeaderId, Connection)>>,
    /// The connections for streams, in the term of a leader.
    pub(super) streams: Mutex<Option<StreamConnections>>,
    /// The most streams on one connection: half of what a server allows.
    pub(super) most_streams: usize,
    /// The next borrow id for a borrow without one: a random number that counts up.
    next_borrow_id: (u64, AtomicU64),
    /// Counts calls that were passed on.
    pub(super) forwarded: Counter,
    /// When this server led or reached the leader for the last time.
    reached: Mutex<Instant>,
    leader_ttl: Duration,
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("leader", &*self.leader.borrow()).finish_non_exhaustive()
    }
}

/// Where a call goes.
pub(crate) enum Route {
    /// This server leads.
    Here,
    /// To the leader.
    To(Leader),
}

/// How long a call may be held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(Instant);

impl Patience {
    /// The patience of a call that begins now and has to be answered within `timeout`, if it says so.
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        let most = timeout.map_or(HOLD, |time| HOLD.min(time.saturating_sub(ANSWER_BEFORE)));
        Self(Instant::now() + most)
    }

    /// Waits for a moment, and returns whether the call may be held longer.
    pub(crate) async fn wait(&self) -> bool {
        sleep(AGAIN_AFTER).await;
        !self.is_over()
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.0
    }
}

impl Fleet {
    /// The fleet of `store`; `None` where no other server uses it. Connections to other servers use
    /// `tls`. Each server allows `max_streams` calls at once on a connection.
    pub(crate) fn new(
        store: &Arc<Store>,
        tls: Option<TlsFiles>,
        (max_streams, leader_ttl): (u32, Duration),
        forwarded: Counter,
    ) -> Option<Arc<Self>> {
        let (secret, leader) = store.fleet()?;
        Some(Arc::new(Self {
            store: store.clone(),
            secret: header_of(secret),
            leader,
            tls,
            connections: Mutex::default(),
            streams: Mutex::default(),
            most_streams: (max_streams as usize / 2).max(1),
            next_borrow_id: (random(), AtomicU64::new(0)),
            forwarded,
            reached: Mutex::new(Instant::now()),
            leader_ttl,
        }))
    }

    /// Whether this server leads, so that calls are answered here.
    pub(crate) fn leads(&self) -> bool {
        self.store.leads()
    }

    /// Whether calls are answered: this server leads and can make changes, or it reached the leader
    /// within twice the leader TTL.
    ///
    /// # Errors
    ///
    /// Why they are not.
    pub(crate) fn ready(&self) -> Result<(), Unavailable> {
        let why = match self.store.ready() {
            Err(why @ (Unavailable::Standby | Unavailable::Lapsed)) => why,
            other => return other,
        };
        if self.reached.lock().elapsed() < self.leader_ttl * 2 { Ok(()) } else { Err(why) }
    }

    /// Asks the leader for its health from time to time; never returns.
    pub(crate) async fn watch_leader(self: Arc<Self>) {
        loop {
            if self.leads() || self.reaches_leader().await {
                *self.reached.lock() = Instant::now();
            }
            sleep(self.leader_ttl / 8).await;
        }
    }

    async fn reaches_leader(&self) -> bool {
        let leader = self.leader.borrow().clone();
        let Some(leader) = leader.filter(|leader| !leader.is_self) else { return false };
        let (Ok(connection), Ok(uri)) = (self.connection(&leader), self.uri(&leader)) else {
            return false;
        };
        let mut uri = uri.into_parts();
        uri.path_and_query = Some(PathAndQuery::from_static("/grpc.health.v1.Health/Check"));
        let Ok(uri) = Uri::from_parts(uri) else { return false };
        let mut request = Request::post(uri);
        if let Some(headers) = request.headers_mut() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        }
        let Ok(request) = request.body(()) else { return false };
        let question = HealthCheckRequest::default();
        let health = connect::grpc::call::<HealthCheckResponse>(&connection, request, &question);
        let health = tokio::time::timeout(self.leader_ttl / 4, health).await;
        matches!(health, Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving)
    }

    /// Waits until this server leads or knows the leader; `None` when that takes too long.
    pub(crate) async fn route(&self, patience: &Patience) -> Option<Route> {
        let mut leader = self.leader.clone();
        loop {
            if self.leads() {
                return Some(Route::Here);
            }
            let known = leader.borrow_and_update().clone();
            let wait_until = match known {
                Some(leader) if !leader.is_self => return Some(Route::To(leader)),
                // It leads soon: it reads the journal.
                Some(_) => patience.0.min(Instant::now() + AGAIN_AFTER),
                None => patience.0,
            };
            if patience.is_over() {
                return None;
            }
            // Either way the leader is looked at again. The sender lives as long as the store.
            let _ = timeout_at(wait_until, leader.changed()).await;
        }
    }

    /// Waits until another term than that of `id` is known, and then for [`ANSWER_AFTER_TERM`], unless the
    /// call may be sent again.
    pub(super) async fn hangs_after_term(&self, id: LeaderId, may_be_repeated: bool) {
        let mut leader = self.leader.clone();
        let other = |leader: &Option<Leader>| leader.as_ref().is_some_and(|it| it.id != id);
        if leader.wait_for(other).await.is_err() {
            std::future::pending().await
        }
        if !may_be_repeated {
            sleep(ANSWER_AFTER_TERM).await;
        }
    }

    /// The connection of this thread to the leader. It is made when it is first used.
    pub(crate) fn connection(&self, leader: &Leader) -> Result<Connection, connect::Unusable> {
        let thread = std::thread::current().id();
        let mut connections = self.connections.lock();
        if let Some((id, connection)) = connections.get(&thread)
            && *id == leader.id
        {
            return Ok(connection.clone());
        }
        let connection = Connection::new(Connector::Way(Arc::new(self.way(leader)?)));
        connections.insert(thread, (leader.id, connection.clone()));
        Ok(connection)
    }

    pub(super) fn way(&self, leader: &Leader) -> Result<Way, connect::Unusable> {
        let unusable = || connect::Unusable::Host(leader.address.to_string());
        let (host, port) = leader.address.rsplit_once(':').ok_or_else(unusable)?;
        let port = port.parse().map_err(|_| unusable())?;
        let way = Way::new(Host::new(host, port), [], Protocol::Http2);
        match &self.tls {
            Some(files) => way.with_tls(files.clone()),
            None => Ok(way),
        }
    }

    /// The address of the leader, for the requests to it.
    pub(super) fn uri(&self, leader: &Leader) -> Result<Uri, Status> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(&*leader.address).path_and_query("/");
        uri.build().map_err(|error| Status::unavailable(error.to_string()))
    }

    pub(super) fn borrow_id(&self) -> HeaderValue {
        let (high, low) = &self.next_borrow_id;
        let id = format!("{high:016x}{:016x}", low.fetch_add(1, Ordering::Relaxed));
        HeaderValue::try_from(id).expect("hexadecimal digits are text")
    }
}

fn header_of(secret: FleetSecret) -> HeaderValue {
    let mut header = HeaderValue::try_from(secret.to_text()).expect("hexadecimal digits are text");
    header.set_sensitive(true);
    header
}

/// A random number. Where the operating system has none, the time and this process tell two servers
/// apart.
fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(std::process::id())
}

pub(super) fn no_leader() -> Status {
    Status::unavailable("no server of the fleet is known to lead")
}
