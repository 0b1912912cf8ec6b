//! An HTTP/2 connection whose frames the attack writes itself.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex as Turns, Notify};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::frames::{Block, Frame, PREFACE, flag, frame, kind, setting, settings};

/// The timeout of connecting, and then of waiting for the settings of the server.
const GREETING: Duration = Duration::from_secs(5);

/// The initial window of a connection and of a stream.
const WINDOW: u32 = 65_535;

/// The window of a connection that reads all its answers.
const WIDE: u32 = 1 << 30;

/// The receive buffer of a connection that reads nothing.
const NARROW_BUFFER: u32 = 16 * 1024;

/// Bytes that one attack may send, so that each is bounded.
#[derive(Debug)]
pub(crate) struct Allowance {
    most: u64,
    sent: AtomicU64,
}

impl Allowance {
    /// An allowance of `most` bytes.
    pub(crate) const fn new(most: u64) -> Self {
        Self { most, sent: AtomicU64::new(0) }
    }

    /// Bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn spend(&self, bytes: usize) -> anyhow::Result<()> {
        let sent = self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        ensure!(sent <= self.most, "the attack has sent all it may, {} bytes", self.most);
        Ok(())
    }
}

/// Connects to `address`, which may take 5 s.
///
/// # Errors
///
/// Nobody listens, or the connection takes too long.
pub(crate) async fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    Ok(timeout(GREETING, TcpStream::connect(address)).await.context("it cannot connect")??)
}

/// The target of connections, and how much they may send.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    pub(crate) allowance: Arc<Allowance>,
}

/// What a connection reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Reads and acknowledges everything; the windows are wide enough for any attack.
    Everything,
    /// As [`Reads::Everything`], and keeps the messages of answers.
    Answers,
    /// Reads frames, but grants no window for answers.
    NoBodies,
    /// Reads nothing after the settings of the server.
    Nothing,
}

/// What the server did on one connection so far.
#[derive(Debug)]
struct Peer {
    state: Mutex<State>,
    /// Signals that the state has changed.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    max_streams: u32,
    /// Bytes that may be sent.
    window: i64,
    stream_window: u32,
    /// Streams that ended with a message.
    answered: u64,
    /// Streams that ended without a message, or were reset.
    refused: u64,
    has_greeted: bool,
    /// Whether the server closed the connection, or announced that it will.
    is_over: bool,
    /// Messages of answers, without their prefixes.
    answers: Vec<Vec<u8>>,
    /// Acknowledgements, to be sent with the next bytes.
    due: Vec<u8>,
}

impl State {
    /// Streams that ended, answered or refused.
    const fn ended(&self) -> u64 {
        self.answered + self.refused
    }
}

/// A connection. It is closed when this value is dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    out: Arc<Turns<OwnedWriteHalf>>,
    peer: Arc<Peer>,
    reader: AbortHandle,
    allowance: Arc<Allowance>,
    next: u32,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Connection {
    /// Connects, sends the preface, and waits for the server's settings.
    ///
    /// # Errors
    ///
    /// Nobody listens, or the server sends no settings within 5 s.
    pub(crate) async fn open(link: &Link, reads: Reads) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if reads == Reads::Nothing {
            socket.set_recv_buffer_size(NARROW_BUFFER)?;
        }
        let stream = timeout(GREETING, socket.connect(link.address)).await.context("connect")??;
        stream.set_nodelay(true)?;
        let (source, out) = stream.into_split();
        let state = Mutex::new(State {
            max_streams: u32::MAX,
            window: WINDOW.into(),
            stream_window: WINDOW,
            answered: 0,
            refused: 0,
            has_greeted: false,
            is_over: false,
            answers: Vec::new(),
            due: Vec::new(),
        });
        let peer = Arc::new(Peer { state, changed: Notify::new() });
        let out = Arc::new(Turns::new(out));
        let reader = tokio::spawn(read(source, reads, out.clone(), peer.clone())).abort_handle();
        let mut this = Self { out, peer, reader, allowance: link.allowance.clone(), next: 1 };
        let mut greeting = PREFACE.to_vec();
        let window = if reads == Reads::NoBodies { 0 } else { WIDE };
        settings(&mut greeting, &[(setting::INITIAL_WINDOW_SIZE, window)]);
        if reads != Reads::NoBodies {
            frame(&mut greeting, kind::WINDOW_UPDATE, flag::NONE, 0, &WIDE.to_be_bytes());
        }
        this.send(&greeting).await?;
        timeout(GREETING, this.until(|peer| peer.has_greeted))
            .await
            .context("the server did not greet in time")??;
        Ok(this)
    }

    /// Sends `bytes`, and waits while the server does not read.
    ///
    /// # Errors
    ///
    /// The connection broke, or the attack has used its allowance.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.allowance.spend(bytes.len())?;
        let mut out = self.out.lock().await;
        let due = std::mem::take(&mut self.peer.state.lock().due);
        out.write_all(&due).await?;
        out.write_all(bytes).await?;
        Ok(())
    }

    /// The identifier of the next stream.
    pub(crate) const fn stream(&mut self) -> u32 {
        let stream = self.next;
        self.next += 2;
        stream
    }

    /// Appends to `out` the headers of one more call without its body, and returns its stream.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>, block: &Block) -> u32 {
        let stream = self.stream();
        frame(out, kind::HEADERS, flag::END_HEADERS, stream, block.bytes());
        stream
    }

    /// Appends to `out` one more whole call.
    pub(crate) fn call(&mut self, out: &mut Vec<u8>, block: &Block, message: &[u8]) {
        let stream = self.begin(out, block);
        frame(out, kind::DATA, flag::END_STREAM, stream, message);
        self.peer.state.lock().window -= message.len() as i64;
    }

    /// Waits until bytes of a body may be sent on this connection, and takes up to `most` of them.
    ///
    /// # Errors
    ///
    /// The server closed the connection.
    pub(crate) async fn window(&self, most: usize) -> anyhow::Result<usize> {
        self.until(|peer| peer.window > 0).await?;
        let mut peer = self.peer.state.lock();
        let granted = peer.window.min(most as i64);
        peer.window -= granted;
        Ok(granted as usize)
    }

    /// Whether the connection may send `bytes` of a body now.
    pub(crate) fn has_window(&self, bytes: usize) -> bool {
        self.peer.state.lock().window >= bytes as i64
    }

    /// The most streams at once, as the server announced it.
    pub(crate) fn max_streams(&self) -> u32 {
        self.peer.state.lock().max_streams
    }

    /// The initial window of a stream.
    pub(crate) fn stream_window(&self) -> usize {
        self.peer.state.lock().stream_window as usize
    }

    /// Streams that ended, answered or refused.
    pub(crate) fn ended(&self) -> u64 {
        self.peer.state.lock().ended()
    }

    /// Streams that ended without a message.
    pub(crate) fn refused(&self) -> u64 {
        self.peer.state.lock().refused
    }

    /// Takes the messages of the answers so far.
    pub(crate) fn answers(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.peer.state.lock().answers)
    }

    /// Waits until more than `ended` streams ended, or until a body of `bytes` may be sent, if any is
    /// waiting.
    ///
    /// # Errors
    ///
    /// The server closed the connection.
    pub(crate) async fn until_ended(&self, ended: u64, bytes: Option<usize>) -> anyhow::Result<()> {
        self.until(|peer| {
            peer.ended() > ended || bytes.is_some_and(|bytes| peer.window >= bytes as i64)
        })
        .await
    }

    /// Waits until fewer than `most` of the `opened` streams are open.
    ///
    /// # Errors
    ///
    /// The server closed the connection.
    pub(crate) async fn until_room(&self, opened: u64, most: u64) -> anyhow::Result<()> {
        match (opened + 1).checked_sub(most) {
            None | Some(0) => Ok(()),
            Some(ended) => self.until_ended(ended - 1, None).await,
        }
    }

    /// Waits until the server announces that it closes the connection, or closes it.
    pub(crate) async fn closed(&self) {
        let over = self.until(|_| false).await;
        over.expect_err("the condition never holds");
    }

    /// Waits until `condition` holds.
    async fn until(&self, condition: impl Fn(&State) -> bool) -> anyhow::Result<()> {
        loop {
            let changed = self.peer.changed.notified();
            {
                let peer = self.peer.state.lock();
                if condition(&peer) {
                    return Ok(());
                }
                ensure!(!peer.is_over, "the server closed the connection");
            }
            changed.await;
        }
    }
}

/// Reads until the connection ends, as `reads` says.
async fn read(
    mut source: OwnedReadHalf,
    reads: Reads,
    out: Arc<Turns<OwnedWriteHalf>>,
    peer: Arc<Peer>,
) {
    let mut bytes = Vec::with_capacity(64 * 1024);
    let mut bodies = HashMap::new();
    // After an error or the end of the stream the connection is over.
    while let Ok(1..) = source.read_buf(&mut bytes).await {
        let mut read = 0;
        while let Some((frame, length)) = Frame::first(&bytes[read..]) {
            handle(&frame, reads, &mut peer.state.lock(), &mut bodies);
            read += length;
        }
        bytes.drain(..read);
        peer.changed.notify_waiters();
        // If a writer holds the lock, the next writer sends the acknowledgements before its own
        // bytes.
        if let Ok(mut out) = out.try_lock() {
            let due = std::mem::take(&mut peer.state.lock().due);
            if out.write_all(&due).await.is_err() {
                break;
            }
        }
        if reads == Reads::Nothing && peer.state.lock().has_greeted {
            // The socket stays open but is not read.
            std::future::pending::<()>().await;
        }
    }
    peer.state.lock().is_over = true;
    peer.changed.notify_waiters();
}

/// Handles a frame that the server sent.
fn handle(
    received: &Frame<'_>,
    reads: Reads,
    peer: &mut State,
    bodies: &mut HashMap<u32, Vec<u8>>,
) {
    let Frame { kind, flags, stream, payload } = *received;
    match kind {
        kind::SETTINGS if flags & flag::ACK == 0 => {
            for (name, value) in received.settings() {
                match name {
                    setting::MAX_CONCURRENT_STREAMS => peer.max_streams = value,
                    setting::INITIAL_WINDOW_SIZE => peer.stream_window = value,
                    _ => {}
                }
            }
            frame(&mut peer.due, kind::SETTINGS, flag::ACK, 0, &[]);
            peer.has_greeted = true;
        }
        kind::PING if flags & flag::ACK == 0 => {
            frame(&mut peer.due, kind::PING, flag::ACK, 0, payload);
        }
        kind::WINDOW_UPDATE if stream == 0 => peer.window += i64::from(received.increment()),
        kind::GOAWAY => peer.is_over = true,
        kind::RST_STREAM => {
            bodies.remove(&stream);
            peer.refused += 1;
        }
        kind::DATA | kind::HEADERS => {
            if kind == kind::DATA {
                let body: &mut Vec<u8> = bodies.entry(stream).or_default();
                if reads == Reads::Answers {
                    body.extend_from_slice(payload);
                }
            }
            if flags & flag::END_STREAM != 0 {
                match bodies.remove(&stream) {
                    Some(body) => {
                        peer.answered += 1;
                        if reads == Reads::Answers {
                            peer.answers.push(body.get(5..).unwrap_or_default().to_vec());
                        }
                    }
                    None => peer.refused += 1,
                }
            }
        }
        _ => {}
    }
}
