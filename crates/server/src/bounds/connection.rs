//! The state of a connection that its calls and its task share.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::memory::{
    Account, CALL_BYTES, CallerName, ConnectionMemory, FIELD_BYTES, Full, MemoryBudget,
};
use super::places::{Occupant, Place, Places};
use super::rounds::{FIELDS, Rounds, Share, work_of};
use crate::config::PortLimits;
use crate::headers::FLEET_SECRET;

/// The bytes that are read in one turn of a connection: before its caller is known, and after.
const UNKNOWN_READS: usize = 4 << 10;
const READS: usize = 16 << 10;

/// The turns of a new connection that are not counted, so that a handshake is not delayed by a
/// thousand busy connections whose callers are unknown.
const FREE_TURNS: u64 = 8;

/// While places are short, how long an HTTP/2 connection may take until its first call, and how long a
/// TLS handshake may take.
const FIRST_CALL: Duration = Duration::from_secs(1);
const HANDSHAKE: Duration = Duration::from_millis(500);

/// The most calls that are handled at once on a connection before it is proven.
const UNPROVEN_CALLS: usize = 100;

/// The most calls in total of a connection before it is proven. Beyond them the connection is closed:
/// its client has no key, or cancels every call, and does not wait for answers.
const UNPROVEN_CALLS_IN_ALL: u64 = 16_384;

/// The most health watches and reflection streams at once on one connection.
const MAX_PUBLIC_STREAMS: usize = 8;

/// The caller that a connection of another server of the fleet counts for. No indexer has this name.
const FLEET: &str = "\0fleet";

/// How many header fields the servers of a fleet add to a call.
const FLEET_FIELDS: usize = 8;

/// The callers of one connection of another server that are remembered without a call in flight.
const MAX_CALLERS: usize = 1_024;

/// The shared state of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    peer: Option<IpAddr>,
    limits: PortLimits,
    budget: Arc<MemoryBudget>,
    memory: ConnectionMemory,
    rounds: Arc<Rounds>,
    share: Mutex<Arc<Share>>,
    /// Its place, once it has one. A connection that the server itself made has none.
    place: OnceLock<(Arc<Places>, u64)>,
    /// Whether the caller is known.
    is_known: AtomicBool,
    /// Whether a valid key was shown, or a call was answered where no indexers are configured.
    is_proven: AtomicBool,
    /// Notified when the connection is proven, and before that when a call has ended.
    admitted: Notify,
    /// The number of calls so far, and of calls in flight.
    calls: AtomicU64,
    in_flight: AtomicUsize,
    public_streams: AtomicUsize,
    turns: AtomicU64,
    opened: Instant,
    /// Whether the first bytes of HTTP have arrived, and whether they were the HTTP/2 preface.
    speaks_http: AtomicBool,
    speaks_http2: AtomicBool,
    /// The bytes that may still be read in this turn.
    readable: AtomicUsize,
    closes: AtomicBool,
    closes_at_once: AtomicBool,
    /// Set for a connection of another server of the fleet: for each caller whose calls it passes on,
    /// what counts for that caller.
    behalf: OnceLock<Mutex<HashMap<CallerName, Arc<Connection>>>>,
    pub(crate) waker: AtomicWaker,
}

impl Connection {
    /// A connection from `peer` on the thread of `rounds`. Its caller is not known yet.
    pub(crate) fn new(
        peer: Option<IpAddr>,
        budget: &Arc<MemoryBudget>,
        rounds: &Arc<Rounds>,
        limits: &PortLimits,
    ) -> Arc<Self> {
        let limit = limits.max_connection_memory as usize;
        Arc::new(Self {
            peer,
            limits: *limits,
            budget: budget.clone(),
            memory: ConnectionMemory::new(budget.account(CallerName::Unknown), limit),
            rounds: rounds.clone(),
            share: Mutex::new(rounds.share(&CallerName::Unknown)),
            place: OnceLock::new(),
            is_known: AtomicBool::new(false),
            is_proven: AtomicBool::new(false),
            admitted: Notify::new(),
            calls: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            public_streams: AtomicUsize::new(0),
            turns: AtomicU64::new(0),
            opened: Instant::now(),
            speaks_http: AtomicBool::new(false),
            speaks_http2: AtomicBool::new(false),
            readable: AtomicUsize::new(UNKNOWN_READS),
            closes: AtomicBool::new(false),
            closes_at_once: AtomicBool::new(false),
            behalf: OnceLock::new(),
            waker: AtomicWaker::new(),
        })
    }

    pub(crate) fn set_place(&self, places: &Arc<Places>, place: &Place) {
        // A connection gets a place only once.
        let _ = self.place.set((places.clone(), place.number()));
    }

    /// The address of the other end, if it came from a socket. Its port is not known.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.peer.map(|address| SocketAddr::new(address, 0))
    }

    pub(crate) const fn memory(&self) -> &ConnectionMemory {
        &self.memory
    }

    /// The number of callers that use memory now.
    pub(crate) fn callers(&self) -> usize {
        self.budget.active()
    }

    /// The share of the caller in the rounds of this thread.
    pub(crate) fn share(&self) -> Arc<Share> {
        self.share.lock().clone()
    }

    /// Sets the caller: `indexer`, or the peer's address where no indexers are configured.
    ///
    /// Only the first call has an effect: a connection with calls of several indexers counts for the
    /// first one.
    pub(crate) fn set_caller(&self, indexer: Option<&str>) {
        if self.is_known.load(Relaxed) {
            return;
        }
        self.is_known.store(true, Release);
        let account: Arc<Account> = self.budget.account(caller_name(self.peer, indexer));
        *self.share.lock() = self.rounds.share(account.name());
        self.memory.move_to(account);
        if indexer.is_some() {
            self.mark_proven();
        }
    }

    /// Returns what counts for a caller whose calls this connection of another server passes on: an
    /// indexer, or a peer. That server has bounds for its connections, so this one never waits for a
    /// turn; each call waits for the turn of its caller.
    fn on_behalf(&self, peer: Option<IpAddr>, indexer: Option<&str>) -> Arc<Self> {
        let callers = self.behalf.get_or_init(|| {
            self.set_caller(Some(FLEET));
            Mutex::default()
        });
        let name = caller_name(peer, indexer);
        let mut callers = callers.lock();
        if let Some(connection) = callers.get(&name) {
            return connection.clone();
        }
        if callers.len() >= MAX_CALLERS {
            callers.retain(|_, connection| Arc::strong_count(connection) > 1);
        }
        let more = u32::try_from(FLEET_FIELDS).unwrap_or(u32::MAX);
        let limits = PortLimits {
            max_header_fields: self.limits.max_header_fields.saturating_add(more),
            ..self.limits
        };
        let connection = Self::new(peer, &self.budget, &self.rounds, &limits);
        connection.set_caller(indexer);
        connection.is_proven.store(true, Release);
        callers.insert(name, connection.clone());
        connection
    }

    /// Begins a call of a caller for which another server of the fleet passes it on, on a link of this
    /// connection.
    pub(crate) fn begin_on_behalf(
        &self,
        peer: Option<IpAddr>,
        indexer: Option<&str>,
        headers: &mut HeaderMap,
    ) -> InFlight {
        self.on_behalf(peer, indexer).begin(headers)
    }

    /// Marks the connection as proven: a valid key was shown, or a call was answered where none is
    /// needed.
    pub(crate) fn mark_proven(&self) {
        if self.is_proven.load(Relaxed) || self.is_proven.swap(true, AcqRel) {
            return;
        }
        if let Some((places, place)) = self.place.get()
            && let connections = self.memory().account().connections.load(Relaxed)
            && !places.mark_proven(*place, self.callers(), connections)
        {
            tracing::debug!(
                "a caller has more than its share of the connections: this one is closed"
            );
            self.close();
        }
        self.admitted.notify_waiters();
    }

    /// Whether too many calls are in flight to read another message that is not needed.
    pub(crate) fn is_crowded(&self) -> bool {
        self.in_flight.load(Relaxed) > UNPROVEN_CALLS
    }

    /// Whether a call may be handled at once; see [`Connection::admitted`].
    pub(crate) fn admits(&self, call: &InFlight) -> bool {
        call.ahead < UNPROVEN_CALLS || self.is_proven.load(Acquire)
    }

    /// Waits until a call may be handled: until few calls are in flight, or the connection is proven.
    pub(crate) async fn admitted(&self, call: &InFlight) {
        if call.ahead < UNPROVEN_CALLS {
            return;
        }
        loop {
            let admitted = self.admitted.notified();
            if self.is_proven.load(Acquire) || self.in_flight.load(Relaxed) <= UNPROVEN_CALLS {
                return;
            }
            admitted.await;
        }
    }

    /// How long an answer may wait until its caller reads it.
    pub(crate) const fn answer_timeout(&self) -> Duration {
        self.limits.answer_timeout
    }

    /// Counts a call, and the memory of the call and its headers. If there are too many headers, they
    /// are dropped at once.
    pub(crate) fn begin(self: &Arc<Self>, headers: &mut HeaderMap) -> InFlight {
        let fields = headers.len();
        self.count_fields(fields);
        let has_too_many_fields = fields > self.most_fields(headers);
        if has_too_many_fields {
            *headers = HeaderMap::new();
        }
        let calls = self.calls.fetch_add(1, Relaxed);
        if calls > UNPROVEN_CALLS_IN_ALL && !self.is_proven.load(Relaxed) {
            self.close_at_once();
        }
        let ahead = self.in_flight.fetch_add(1, Relaxed);
        let bytes = memory_of(headers);
        let taken = self.memory.take(bytes);
        InFlight {
            connection: self.clone(),
            ahead,
            bytes: if taken.is_ok() { bytes } else { 0 },
            full: taken.err(),
            has_too_many_fields,
            passed_on: None,
        }
    }

    /// The most header fields of a call with these headers. A call that another server of the fleet
    /// passes on has a few more than its caller sent.
    fn most_fields(&self, headers: &HeaderMap) -> usize {
        let most = self.limits.max_header_fields as usize;
        if headers.len() > most && headers.contains_key(FLEET_SECRET) {
            most + FLEET_FIELDS
        } else {
            most
        }
    }

    /// Counts header fields as work, where there are many.
    fn count_fields(&self, fields: usize) {
        if fields > FIELDS {
            self.share.lock().count(u32::try_from(fields / FIELDS).unwrap_or(u32::MAX));
        }
    }

    /// Takes a place for a health watch or a reflection stream; `None` when all places are taken.
    pub(crate) fn open_public_stream(self: &Arc<Self>) -> Option<PublicStream> {
        let open = self.public_streams.fetch_add(1, Relaxed);
        let stream = PublicStream(self.clone());
        (open < MAX_PUBLIC_STREAMS).then_some(stream)
    }

    /// Waits for a turn of the connection, in which it may read a limited number of bytes.
    pub(crate) fn poll_turn(&self, context: &Context<'_>) -> Poll<()> {
        let is_known = self.is_known.load(Relaxed);
        let turns = self.turns.fetch_add(1, Relaxed);
        if (is_known || turns > FREE_TURNS) && self.behalf.get().is_none() {
            std::task::ready!(self.share.lock().poll_turn(1, context));
        }
        self.readable.store(if is_known { READS } else { UNKNOWN_READS }, Relaxed);
        Poll::Ready(())
    }

    /// Waits for the turn of a call.
    pub(crate) fn poll_call(&self, context: &Context<'_>) -> Poll<()> {
        if self.behalf.get().is_some() {
            return Poll::Ready(());
        }
        self.share.lock().poll_turn(1, context)
    }

    /// The bytes that may be read now; 0 at the end of the turn.
    pub(crate) fn readable(&self) -> usize {
        self.readable.load(Relaxed)
    }

    /// Counts bytes that were read, also as work.
    pub(crate) fn count_read(&self, bytes: usize) {
        self.readable.fetch_sub(bytes, Relaxed);
        self.share.lock().count(work_of(bytes));
    }

    /// Closes the connection gracefully: calls in flight are finished, new ones are refused.
    pub(crate) fn close(&self) {
        self.closes.store(true, Release);
        self.waker.wake();
    }

    /// Waits until the connection has to close at once. For use before HTTP is spoken.
    pub(crate) fn poll_close_at_once(&self, context: &Context<'_>) -> Poll<()> {
        self.waker.register(context.waker());
        if self.has_to_close_at_once() { Poll::Ready(()) } else { Poll::Pending }
    }

    pub(crate) fn has_to_close(&self) -> bool {
        self.closes.load(Acquire)
    }

    pub(crate) fn has_to_close_at_once(&self) -> bool {
        self.closes_at_once.load(Acquire)
    }

    /// A connection of another caller on the same thread.
    #[cfg(test)]
    pub(crate) fn another_of_a_test(&self) -> Arc<Self> {
        let other = Self::new(None, &self.budget, &self.rounds, &PortLimits::default());
        other.set_caller(Some("another"));
        other
    }

    #[cfg(test)]
    pub(crate) fn of_a_test() -> Arc<Self> {
        let memory = MemoryBudget::new(64 << 20, Default::default());
        Self::new(None, &memory, &Arc::default(), &PortLimits::default())
    }

    /// Notes that the first bytes of HTTP have arrived.
    pub(crate) fn mark_http(&self, is_http2: bool) {
        self.speaks_http2.store(is_http2, Relaxed);
        self.speaks_http.store(true, Relaxed);
    }

    /// Whether the first bytes of HTTP have arrived.
    pub(crate) fn speaks_http(&self) -> bool {
        self.speaks_http.load(Relaxed)
    }

    /// Whether no call is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.load(Acquire) == 0
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Relaxed)
    }
}

/// A call in flight, until its whole answer was written.
#[derive(Debug)]
pub(crate) struct InFlight {
    connection: Arc<Connection>,
    /// How many calls were in flight on the connection when this one arrived.
    ahead: usize,
    bytes: usize,
    full: Option<Full>,
    has_too_many_fields: bool,
    /// The call on the connection of the other server that passed it on.
    passed_on: Option<Box<InFlight>>,
}

impl InFlight {
    /// Returns the call as one of the caller for which another server of the fleet passed it on.
    pub(crate) fn on_behalf(
        self,
        peer: Option<IpAddr>,
        indexer: Option<&str>,
        headers: &mut HeaderMap,
    ) -> Self {
        let caller = self.connection.on_behalf(peer, indexer);
        let mut call = caller.begin(headers);
        call.passed_on = Some(Box::new(self));
        call
    }

    pub(crate) const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    pub(crate) const fn has_too_many_fields(&self) -> bool {
        self.has_too_many_fields
    }

    /// Why there is no memory for the call; `None` when there is.
    pub(crate) const fn full(&self) -> Option<Full> {
        self.full
    }

    /// Tries again to get memory for the call, because the caller is known now.
    pub(crate) fn begin_again(&mut self, headers: &HeaderMap) {
        if self.full.is_none() {
            return;
        }
        let bytes = memory_of(headers);
        if self.connection.memory.take(bytes).is_ok() {
            (self.full, self.bytes) = (None, bytes);
        }
    }

    /// Takes `bytes` more of memory while the call is in flight.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Full> {
        self.connection.memory.take(bytes)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Connection { memory, in_flight, is_proven, admitted, .. } = &*self.connection;
        memory.give_back(self.bytes);
        in_flight.fetch_sub(1, AcqRel);
        if !is_proven.load(Relaxed) {
            admitted.notify_one();
        }
    }
}

/// The name of the caller of a connection.
fn caller_name(peer: Option<IpAddr>, indexer: Option<&str>) -> CallerName {
    match (indexer, peer) {
        (Some(indexer), _) => CallerName::Indexer(indexer.into()),
        (None, Some(address)) => CallerName::Address(address),
        // A connection that the server itself made.
        (None, None) => CallerName::Indexer("".into()),
    }
}

/// The memory of a call with these headers, without its message.
fn memory_of(headers: &HeaderMap) -> usize {
    let texts = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    CALL_BYTES + headers.len() * FIELD_BYTES + texts.sum::<usize>()
}

impl Occupant for Connection {
    /// Whether it may be closed to make room: it is idle. A connection that has not made its first
    /// call has some time for it, and so has a TLS handshake.
    fn may_be_closed(&self, has_tls: bool) -> bool {
        let moment = match (self.speaks_http2.load(Relaxed), self.calls() > 0) {
            (true, false) => FIRST_CALL,
            (false, _) if has_tls => HANDSHAKE,
            _ => Duration::ZERO,
        };
        self.is_idle() && (moment.is_zero() || self.opened.elapsed() > moment)
    }

    /// Sends GOAWAY and closes without waiting.
    fn close_at_once(&self) {
        self.closes_at_once.store(true, Release);
        self.waker.wake();
    }
}

/// A place for a health watch or a reflection stream of one connection.
#[derive(Debug)]
pub(crate) struct PublicStream(Arc<Connection>);

impl Drop for PublicStream {
    fn drop(&mut self) {
        self.0.public_streams.fetch_sub(1, Relaxed);
    }
}
