//! The servers of a fleet as this one sees them: who leads, and the connections to the leader.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::Duration;

use connect::{Connection, Connector, Host, Protocol, TlsFiles, Way};
use http::header::{CONTENT_TYPE, HeaderValue, TE};
use http::uri::PathAndQuery;
use http::{Request, Uri};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use store::fleet::{FleetSecret, Leader, LeaderId};
use store::{Store, Unavailable};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tonic::Status;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::connections::StreamConnections;
use super::link::{LINK, Link};

/// How long a call is held while no server is known to lead.
const HOLD: Duration = Duration::from_secs(2);

/// How long before its deadline a call that is held is answered.
const ANSWER_BEFORE: Duration = Duration::from_millis(50);

/// The call that asks a server for its health.
const CHECK: &str = "/grpc.health.v1.Health/Check";

/// How long a call that is held waits before it is tried again: at first, and at most. It doubles, so that
/// many held calls are no load for a leader that does not serve yet.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(320);

/// The fleet of this server.
pub(crate) struct Fleet {
    store: Arc<Store>,
    pub(super) secret: HeaderValue,
    pub(super) leader: watch::Receiver<Option<Leader>>,
    pub(super) tls: Option<TlsFiles>,
    /// The way of each serving thread to the leader of a term.
    ways: Mutex<HashMap<ThreadId, WayToLeader>>,
    pub(super) streams: StreamConnections,
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

/// The way of one thread to the leader of one term.
struct WayToLeader {
    of: LeaderId,
    connection: Connection,
    link: Option<Arc<Link>>,
}

/// How long a call may be held.
#[derive(Debug)]
pub(crate) struct Patience {
    until: Instant,
    next_wait: Duration,
}

impl Patience {
    /// The patience of a call that begins now and has to be answered within `timeout`, if it says so.
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        let most = timeout.map_or(HOLD, |time| HOLD.min(time.saturating_sub(ANSWER_BEFORE)));
        Self { until: Instant::now() + most, next_wait: FIRST_WAIT }
    }

    /// Waits before the call is tried again. Returns `false` when it may be held no longer.
    pub(crate) async fn wait(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until {
            return false;
        }
        sleep_until(self.until.min(now + self.next_wait)).await;
        self.next_wait = LONGEST_WAIT.min(self.next_wait * 2);
        true
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
            ways: Mutex::default(),
            streams: StreamConnections::new(max_streams),
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
    /// within twice the leader TTL, and can be the successor of the leader: of two servers, the old one
    /// may be stopped once the new one is ready.
    ///
    /// # Errors
    ///
    /// Why they are not.
    pub(crate) fn ready(&self) -> Result<(), Unavailable> {
        let why = match self.store.ready() {
            Err(why) if why.is_for_the_leader() => why,
            other => return other,
        };
        let is_reached = self.reached.lock().elapsed() < self.leader_ttl * 2;
        if is_reached && self.store.is_member() { Ok(()) } else { Err(why) }
    }

    /// The term that this server leads now, if it leads.
    pub(crate) fn own_term(&self) -> Option<LeaderId> {
        let leader = self.leader.borrow();
        leader.as_ref().filter(|leader| leader.is_self && self.leads()).map(|leader| leader.id)
    }

    /// Whether this server leads and its leadership is valid.
    fn acts(&self) -> bool {
        !self.store.ready().is_err_and(Unavailable::is_for_the_leader)
    }

    /// Asks the leader for its health from time to time; never returns. Says when it does not answer, and
    /// when it answers again.
    pub(crate) async fn watch_leader(self: Arc<Self>) {
        let mut problem: Option<String> = None;
        loop {
            let reached = if self.acts() { Ok(()) } else { self.reach_leader().await };
            match reached {
                Ok(()) => {
                    *self.reached.lock() = Instant::now();
                    if problem.take().is_some() {
                        tracing::info!("the leader of the fleet answers");
                    }
                }
                Err(error) => {
                    let error = error.message().to_owned();
                    if problem.as_ref() != Some(&error) {
                        tracing::warn!(%error, "the leader of the fleet does not answer");
                        problem = Some(error);
                    }
                }
            }
            sleep(self.leader_ttl / 8).await;
        }
    }

    /// Asks the leader for its health.
    ///
    /// # Errors
    ///
    /// Why no leader answers that it serves.
    async fn reach_leader(&self) -> Result<(), Status> {
        let leader = self.leader.borrow().clone();
        let leader = leader.filter(|leader| !leader.is_self).ok_or_else(no_leader)?;
        let request = Request::post(self.uri(&leader, PathAndQuery::from_static(CHECK))?)
            .header(CONTENT_TYPE, "application/grpc")
            .body(())
            .map_err(unreachable)?;
        let (connection, question) = (self.connection(&leader)?, HealthCheckRequest::default());
        let health = connect::grpc::call::<HealthCheckResponse>(&connection, request, &question);
        let health = connect::grpc::within(self.leader_ttl / 4, health).await?;
        match health.get_ref().status() {
            ServingStatus::Serving => Ok(()),
            _ => Err(Status::unavailable(format!("{} does not serve", leader.address))),
        }
    }

    /// Returns the leader, or `None` when this server leads. Waits until one of the two is known.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE` when that takes too long.
    pub(crate) async fn route(&self, patience: &mut Patience) -> Result<Option<Leader>, Status> {
        loop {
            if self.leads() {
                return Ok(None);
            }
            let known = self.leader.borrow().clone();
            let is_waited_for = match known {
                Some(leader) if !leader.is_self => return Ok(Some(leader)),
                // This server leads soon: it reads the journal.
                Some(_) => patience.wait().await,
                None => {
                    let mut leader = self.leader.clone();
                    timeout_at(patience.until, leader.wait_for(Option::is_some)).await.is_ok()
                }
            };
            if !is_waited_for {
                return Err(no_leader());
            }
        }
    }

    /// Waits until this server acts as the leader, or does not lead. Returns `false` when a call may be held
    /// no longer.
    pub(crate) async fn settles(&self, patience: &mut Patience) -> bool {
        while self.leads() && !self.acts() {
            if !patience.wait().await {
                return false;
            }
        }
        patience.wait().await
    }

    /// Resolves when another term than that of `id` is known.
    pub(super) fn is_replaced(&self, id: LeaderId) -> impl Future<Output = ()> + Send + use<> {
        let mut leader = self.leader.clone();
        async move {
            let other = |leader: &Option<Leader>| leader.as_ref().is_some_and(|it| it.id != id);
            if leader.wait_for(other).await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// The connection of this thread to the leader. It is made when it is first used.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE` when the address of the leader is none, or the files of TLS cannot be used.
    pub(super) fn connection(&self, leader: &Leader) -> Result<Connection, Status> {
        self.way(leader, |way| Ok(way.connection.clone()))
    }

    /// The link of this thread to the leader. It is opened when it is first used, and when the last one
    /// takes no more calls.
    ///
    /// # Errors
    ///
    /// As [`Fleet::connection`].
    pub(super) fn link(&self, leader: &Leader) -> Result<Arc<Link>, Status> {
        self.way(leader, |way| {
            if let Some(link) = way.link.as_ref().filter(|link| link.is_open()) {
                return Ok(link.clone());
            }
            let mut request = Request::post(self.uri(leader, PathAndQuery::from_static(LINK))?)
                .header(CONTENT_TYPE, "application/grpc")
                .header(TE, "trailers")
                .body(())
                .map_err(unreachable)?;
            self.add_origin(request.headers_mut(), leader, None, None);
            Ok(way
                .link
                .insert(Link::open(way.connection.clone(), request, self.is_replaced(leader.id)))
                .clone())
        })
    }

    /// Calls `get` with the way of this thread to the leader.
    fn way<T>(
        &self,
        leader: &Leader,
        get: impl FnOnce(&mut WayToLeader) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let mut ways = self.ways.lock();
        match ways.entry(std::thread::current().id()) {
            Entry::Occupied(way) if way.get().of == leader.id => get(way.into_mut()),
            way => {
                let connection = self.new_connection(leader)?;
                let new = WayToLeader { of: leader.id, connection, link: None };
                get(way.insert_entry(new).into_mut())
            }
        }
    }

    /// A connection to the leader. It is made when it is first used.
    ///
    /// # Errors
    ///
    /// As [`Fleet::connection`].
    pub(super) fn new_connection(&self, leader: &Leader) -> Result<Connection, Status> {
        let (host, port) = leader.address.rsplit_once(':').ok_or_else(|| unreachable("no port"))?;
        let port = port.parse().map_err(unreachable)?;
        let way = Way::new(Host::new(host, port), [], Protocol::Http2);
        let way = match &self.tls {
            Some(files) => way.with_tls(files.clone()).map_err(unreachable)?,
            None => way,
        };
        Ok(Connection::new(Connector::Way(Arc::new(way))))
    }

    /// The address of what is at `path` of the leader.
    pub(super) fn uri(&self, leader: &Leader, path: PathAndQuery) -> Result<Uri, Status> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let uri = Uri::builder().scheme(scheme).authority(&*leader.address).path_and_query(path);
        uri.build().map_err(unreachable)
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

pub(super) fn unreachable(error: impl fmt::Display) -> Status {
    Status::unavailable(format!("the leader of the fleet cannot be reached: {error}"))
}

pub(super) fn no_leader() -> Status {
    Status::unavailable("no server of the fleet is known to lead")
}
