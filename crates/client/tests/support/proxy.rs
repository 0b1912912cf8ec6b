//! A proxy between clients and their server that imitates the faults of networks.
//!
//! It carries the bytes of any number of TCP connections. The [`Weather`] says which faults occur.
//! It may change at any time, and applies to open connections, too. All waits use the clock of
//! tokio, so paused tests pass hours in milliseconds.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// The most bytes that travel as one packet.
const PACKET: usize = 16 * 1024;

/// The most packets in flight in one direction. The proxy reads more only when one has arrived.
const UNDER_WAY: usize = 256;

/// How long it takes until a lost packet is sent again. Each further loss doubles this time.
const SENT_AGAIN: Duration = Duration::from_millis(200);

/// The state of the network: what happens to every connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) arrival: Arrival,
    pub(crate) to_server: Way,
    pub(crate) to_client: Way,
}

/// What happens to a new connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is carried to the server.
    #[default]
    Carried,
    /// It is reset.
    Reset,
    /// It is half open: the proxy accepts it and reads its bytes, but never answers.
    HalfOpen,
}

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Way {
    pub(crate) flow: Flow,
    /// The delay of every byte.
    pub(crate) delay: Duration,
    /// How many bytes of one connection arrive per second. `None` sets no limit.
    pub(crate) bytes_per_second: Option<u32>,
    /// The probability that a packet is lost and sent again, from 0 to below 1.
    pub(crate) loss: f64,
}

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Flow {
    /// They arrive.
    #[default]
    Open,
    /// They wait until the flow changes.
    Held,
    /// They are dropped. A connection that lost bytes carries nothing more in this direction, not
    /// even its end. So neither side notices that it is broken.
    BlackHole,
    /// They arrive corrupted.
    Garbled,
}

impl Weather {
    /// Nothing arrives in either direction, and new connections are half open.
    pub(crate) fn half_open() -> Self {
        let silent = Way::flow(Flow::BlackHole);
        Self { arrival: Arrival::HalfOpen, to_server: silent, to_client: silent }
    }

    /// New connections are reset, as if no server ran.
    pub(crate) fn refusing() -> Self {
        Self { arrival: Arrival::Reset, ..Self::default() }
    }

    /// Random faults of every kind.
    pub(crate) fn any() -> Self {
        let mut random = rand::rng();
        let mut way = || {
            let flows = [Flow::Open, Flow::Held, Flow::BlackHole, Flow::Garbled];
            Way {
                flow: flows[random.random_range(0..flows.len())],
                delay: Duration::from_millis(random.random_range(0..8_000)),
                bytes_per_second: random.random_bool(0.3).then_some(2_048),
                loss: random.random_range(0.0..0.5),
            }
        };
        let (to_server, to_client) = (way(), way());
        let arrivals = [Arrival::Carried, Arrival::Carried, Arrival::Reset, Arrival::HalfOpen];
        let arrival = arrivals[random.random_range(0..arrivals.len())];
        Self { arrival, to_server, to_client }
    }

    /// Every byte takes `delay` to arrive, in each direction.
    pub(crate) fn slow(delay: Duration) -> Self {
        let way = Way { delay, ..Way::default() };
        Self { arrival: Arrival::Carried, to_server: way, to_client: way }
    }

    /// Packets of both directions are lost with this probability, and sent again.
    pub(crate) fn lossy(loss: f64) -> Self {
        let way = Way { loss, ..Way::default() };
        Self { arrival: Arrival::Carried, to_server: way, to_client: way }
    }

    /// Both directions carry this many bytes per second.
    pub(crate) fn throttled(bytes_per_second: u32) -> Self {
        let way = Way { bytes_per_second: Some(bytes_per_second), ..Way::default() };
        Self { arrival: Arrival::Carried, to_server: way, to_client: way }
    }

    /// Requests arrive, and this happens to the answers.
    pub(crate) fn answers(flow: Flow) -> Self {
        Self { to_client: Way::flow(flow), ..Self::default() }
    }

    /// This happens to the requests.
    pub(crate) fn requests(flow: Flow) -> Self {
        Self { to_server: Way::flow(flow), ..Self::default() }
    }
}

impl Way {
    fn flow(flow: Flow) -> Self {
        Self { flow, ..Self::default() }
    }

    /// When a packet is due that was read at `now`, after a packet that is due at `last`.
    fn due(&self, size: usize, last: Instant, now: Instant) -> Instant {
        let mut due = now + self.delay;
        let mut again = SENT_AGAIN;
        while rand::rng().random_bool(self.loss) {
            due += again;
            again *= 2;
        }
        let pace = self
            .bytes_per_second
            .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(size as f64 / f64::from(rate)));
        due.max(last + pace)
    }
}

/// One end of a connection that the proxy carries.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {
    /// Makes the drop of this end reset the connection.
    fn reset(&self);
}

impl Wire for TcpStream {
    fn reset(&self) {
        // An error means that the connection is closed already.
        let _ = self.set_zero_linger();
    }
}

/// A pipe within the process has no reset: its other end sees the end of the stream.
impl Wire for DuplexStream {
    fn reset(&self) {}
}

/// The future of a connection to the server.
pub(crate) type Dialed = Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>>;

/// How the server is reached.
pub(crate) type Dial = Arc<dyn Fn() -> Dialed + Send + Sync>;

/// Reaches the server over TCP.
#[allow(dead_code, reason = "the tests that need no TCP to the server do without")]
pub(crate) fn over_tcp(server: SocketAddr) -> Dial {
    Arc::new(move || {
        Box::pin(async move {
            let stream = TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    })
}

/// What a proxy has carried so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Connections that clients made, also those that were refused.
    pub(crate) connections: u64,
    /// Bytes that clients sent, also those that were dropped.
    pub(crate) from_clients: u64,
    /// Bytes that the server sent, also those that were dropped.
    pub(crate) from_server: u64,
}

#[derive(Debug, Default)]
struct Counts {
    connections: AtomicU64,
    from_clients: AtomicU64,
    from_server: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Orders {
    weather: Weather,
    /// How often all connections were reset.
    cuts: u64,
}

/// A proxy that listens until it is dropped. Then every connection is reset.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    counts: Arc<Counts>,
}

impl Proxy {
    /// Listens on a free port of loopback, and dials the server for each connection.
    pub(crate) async fn start(dial: Dial) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (orders, heard) = watch::channel(Orders::default());
        let counts = Arc::<Counts>::default();
        tokio::spawn(listen(listener, dial, heard, counts.clone()));
        Ok(Self { address, orders, counts })
    }

    /// The address to which clients connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the state of the network, also for open connections.
    pub(crate) fn set(&self, weather: Weather) {
        self.orders.send_modify(|orders| orders.weather = weather);
    }

    /// Ends all faults: everything arrives at once.
    pub(crate) fn clear(&self) {
        self.set(Weather::default());
    }

    /// Resets every open connection, on both sides.
    pub(crate) fn cut(&self) {
        self.orders.send_modify(|orders| orders.cuts += 1);
    }

    /// What was carried so far.
    pub(crate) fn seen(&self) -> Seen {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Seen {
            connections: read(&self.counts.connections),
            from_clients: read(&self.counts.from_clients),
            from_server: read(&self.counts.from_server),
        }
    }
}

async fn listen(
    listener: TcpListener,
    dial: Dial,
    mut orders: watch::Receiver<Orders>,
    counts: Arc<Counts>,
) {
    loop {
        let arrived = tokio::select! {
            arrived = listener.accept() => arrived,
            () = until_gone(&mut orders) => return,
        };
        // A client that disconnected before it was accepted is not counted.
        let Ok((client, _)) = arrived else { continue };
        counts.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(receive(client, dial.clone(), orders.clone(), counts.clone()));
    }
}

/// Waits until the proxy is dropped.
async fn until_gone(orders: &mut watch::Receiver<Orders>) {
    while orders.changed().await.is_ok() {}
}

/// Waits until all connections are reset, or the proxy is dropped.
async fn until_cut(orders: &mut watch::Receiver<Orders>) {
    let cuts = orders.borrow().cuts;
    // An error means that the proxy is dropped, which resets all connections, too.
    let _ = orders.wait_for(|orders| orders.cuts != cuts).await;
}

async fn receive(
    mut client: TcpStream,
    dial: Dial,
    orders: watch::Receiver<Orders>,
    counts: Arc<Counts>,
) {
    let arrival = orders.borrow().weather.arrival;
    let mut cut = orders.clone();
    let carried = async {
        match arrival {
            Arrival::Carried => {
                client.set_nodelay(true)?;
                let mut server = dial().await?;
                let carried = carry(&mut client, &mut server, &orders, &counts).await;
                if carried.is_err() {
                    server.reset();
                }
                carried
            }
            Arrival::Reset => Err(io::ErrorKind::ConnectionRefused.into()),
            Arrival::HalfOpen => swallow(&mut client, &counts).await,
        }
    };
    let reset = tokio::select! {
        carried = carried => carried.is_err(),
        () = until_cut(&mut cut) => true,
    };
    if reset {
        client.reset();
    }
}

/// Reads and discards the bytes of the client.
async fn swallow(client: &mut TcpStream, counts: &Counts) -> io::Result<()> {
    let mut packet = vec![0; PACKET];
    loop {
        match client.read(&mut packet).await? {
            0 => return Ok(()),
            size => counts.from_clients.fetch_add(size as u64, Ordering::Relaxed),
        };
    }
}

/// Carries both directions until both have ended, or one is broken.
async fn carry(
    client: &mut TcpStream,
    server: &mut Box<dyn Wire>,
    orders: &watch::Receiver<Orders>,
    counts: &Counts,
) -> io::Result<()> {
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    let up = Lane {
        way: |weather| weather.to_server,
        orders: orders.clone(),
        count: &counts.from_clients,
        gone: false,
    };
    let down = Lane {
        way: |weather| weather.to_client,
        orders: orders.clone(),
        count: &counts.from_server,
        gone: false,
    };
    let both = (up.carry(from_client, to_server), down.carry(from_server, to_client));
    tokio::try_join!(both.0, both.1).map(|_| ())
}

/// One direction of one connection.
struct Lane<'a> {
    way: fn(&Weather) -> Way,
    orders: watch::Receiver<Orders>,
    count: &'a AtomicU64,
    /// Whether bytes were dropped.
    gone: bool,
}

impl Lane<'_> {
    async fn carry(
        mut self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        // An empty packet is the end of the stream.
        let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut last = Instant::now();
        let mut buffer = vec![0; PACKET];
        let mut ended = false;
        loop {
            let way = (self.way)(&self.orders.borrow_and_update().weather);
            let next = under_way.front().map(|(due, _)| *due);
            let arrives = next.filter(|_| way.flow != Flow::Held);
            tokio::select! {
                changed = self.orders.changed() => {
                    changed.map_err(|_| io::ErrorKind::ConnectionReset)?;
                }
                read = from.read(&mut buffer), if !ended && under_way.len() < UNDER_WAY => {
                    let packet = match self.take(&way, read, &buffer)? {
                        Taken::Packet(packet) => packet,
                        Taken::Nothing => continue,
                        Taken::Over => return Ok(()),
                    };
                    ended = packet.is_empty();
                    last = way.due(packet.len(), last, Instant::now());
                    under_way.push_back((last, packet));
                }
                () = sleep_until(arrives.unwrap_or(last)), if arrives.is_some() => {
                    let Some((_, packet)) = under_way.pop_front() else { continue };
                    if packet.is_empty() {
                        // The other direction may go on.
                        return to.shutdown().await;
                    }
                    to.write_all(&packet).await?;
                }
            }
        }
    }

    fn take(&mut self, way: &Way, read: io::Result<usize>, buffer: &[u8]) -> io::Result<Taken> {
        self.gone |= way.flow == Flow::BlackHole;
        let size = match read {
            Ok(0) | Err(_) if self.gone => return Ok(Taken::Over),
            read => read?,
        };
        self.count.fetch_add(size as u64, Ordering::Relaxed);
        if self.gone {
            return Ok(Taken::Nothing);
        }
        let mut packet = buffer[..size].to_vec();
        if way.flow == Flow::Garbled {
            packet.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31).wrapping_add(17));
        }
        Ok(Taken::Packet(packet))
    }
}

/// What a read returned.
enum Taken {
    /// Bytes to forward. An empty packet is the end of the stream.
    Packet(Vec<u8>),
    /// Nothing to forward, because the bytes were dropped.
    Nothing,
    /// The sender closed its side, and the receiver must not notice.
    Over,
}
