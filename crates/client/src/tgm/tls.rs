//! How bytes reach the server that a session URL names, with TLS or without, and what they show of
//! its life.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use connect::{Bytestream, Identity, Mismatch, NamedFile, Protocol, TlsFiles, Verify, Way};
use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::config::TgmConfig;
use crate::dsn::GivenFile;
use crate::error::Error;
use crate::plugin::BoxFuture;

/// What makes connections to one server.
#[derive(Clone)]
pub(crate) enum Connect {
    /// By its name.
    Way(Arc<Way>),
    /// By means of the application.
    Own(Arc<dyn Fn() -> Connecting + Send + Sync>),
}

type Connecting = BoxFuture<'static, io::Result<Box<dyn Bytestream>>>;

/// Makes what reaches the server that `config` describes. Nothing is sent before the first call.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the host, or a certificate file, cannot be used.
pub(crate) fn connect(config: &TgmConfig) -> Result<Connect, Error> {
    origin(config)?;
    let mut way = Way::new(config.host.text(), config.at_port(), Protocol::Http2);
    if config.shown_endpoint() != config.endpoint() {
        way = way.shown_as(config.host.to_string(), config.shown_endpoint());
    }
    if config.plaintext {
        return Ok(Connect::Way(Arc::new(way)));
    }
    let verify = match &config.ca_file {
        _ if config.insecure => Verify::Nothing,
        Some(file) => Verify::File(named(file)),
        None => Verify::System,
    };
    let identity = config.client_identity.as_ref();
    let identity = identity
        .map(|(certificate, key)| Identity { certificate: named(certificate), key: named(key) });
    let way = way.with_tls(TlsFiles { verify, identity }).map_err(unusable)?;
    if config.insecure {
        tracing::warn!(
            server = config.shown_endpoint(),
            "insecure=true: the certificate of the session server is not checked"
        );
    }
    Ok(Connect::Way(Arc::new(way)))
}

fn named(file: &GivenFile) -> NamedFile {
    NamedFile { path: file.path().to_owned(), shown: file.to_string() }
}

fn unusable(error: connect::Unusable) -> Error {
    let help = match error {
        connect::Unusable::NoAuthorities(_) => "; name one by `ca-file`",
        _ => "",
    };
    Error::invalid(format!("{error}{help}"))
}

impl Connect {
    /// What to change in the URL, when one end of `error` speaks TLS and the other does not.
    pub(crate) fn advice(&self, error: &io::Error) -> Option<String> {
        let Self::Way(way) = self else { return None };
        Some(match Mismatch::of(error)? {
            Mismatch::Tls => format!(
                "the server at {way} speaks TLS: take `plaintext=true` out of the session URL"
            ),
            Mismatch::Plaintext => format!(
                "the server at {way} does not speak TLS: the session URL needs `plaintext=true`"
            ),
        })
    }
}

/// What the server is called in requests.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the host cannot be used.
pub(crate) fn origin(config: &TgmConfig) -> Result<Uri, Error> {
    let scheme = if config.plaintext { "http" } else { "https" };
    let origin = format!("{scheme}://{}", config.endpoint());
    origin.parse().map_err(|_| {
        Error::invalid(format!("`{}` is not a place on the network", config.shown_endpoint()))
    })
}

// ---- signs of life ----

/// What a connection has room for until its server has said how much that is: no server says this.
pub(super) const UNTOLD: usize = usize::MAX - 1;

/// What shows that the far end lives, and whether anybody waits for it.
#[derive(Debug)]
pub(super) struct Signs {
    made: Instant,
    /// Calls under way.
    calls: AtomicUsize,
    /// Notified when somebody may have begun to wait: a first call began, or the last gave up.
    pub(super) begun: Notify,
    /// Whether the last of them gave up, and nothing came since. That does not make the silence
    /// any better.
    in_vain: AtomicBool,
    /// When something came last, in nanoseconds since it was made.
    heard: AtomicU64,
    /// Since when somebody waits, if anybody does, in nanoseconds since it was made.
    awaited: AtomicU64,
    /// How many calls the server has room for at once.
    room: watch::Sender<usize>,
    /// Whether any connection of the pool was one to a server of HTTP/2.
    worked: Arc<AtomicBool>,
    /// Set when one end speaks TLS and the other does not.
    pub(super) mismatch: OnceLock<Mismatch>,
}

impl Signs {
    pub(super) fn new(worked: Arc<AtomicBool>) -> Self {
        Self {
            made: Instant::now(),
            calls: AtomicUsize::new(0),
            begun: Notify::new(),
            in_vain: AtomicBool::new(false),
            heard: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            room: watch::Sender::new(UNTOLD),
            worked,
            mismatch: OnceLock::new(),
        }
    }

    /// The present, in nanoseconds since it was made.
    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn hear(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
        self.in_vain.store(false, Ordering::Relaxed);
    }

    /// Since when it is silent while somebody waits; `None` while nobody does. How long it was
    /// silent before, when nobody had asked anything, says nothing.
    pub(super) fn awaited_since(&self) -> Option<Instant> {
        let waits = self.calls.load(Ordering::Acquire) > 0 || self.in_vain.load(Ordering::Relaxed);
        let [heard, awaited] = [&self.heard, &self.awaited].map(|at| at.load(Ordering::Relaxed));
        waits.then(|| self.made + Duration::from_nanos(heard.max(awaited)))
    }

    /// Notes how many calls the server has room for at once, once it has said so.
    pub(super) fn has_room_for(&self, calls: usize) {
        if *self.room.borrow() != calls {
            self.worked.store(true, Ordering::Relaxed);
            self.room.send_replace(calls);
        }
    }

    /// Whether the server has begun HTTP/2.
    pub(super) fn has_begun(&self) -> bool {
        *self.room.borrow() != UNTOLD
    }
}

/// A call under way: until it is answered, or dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    signs: Arc<Signs>,
    answered: bool,
}

impl UnderWay {
    pub(super) fn begin(signs: Arc<Signs>) -> Self {
        let waits = &signs.in_vain;
        if signs.calls.load(Ordering::Relaxed) == 0 && !waits.load(Ordering::Relaxed) {
            signs.awaited.store(signs.now(), Ordering::Relaxed);
        }
        // Whoever sees the call sees since when it waits.
        if signs.calls.fetch_add(1, Ordering::Release) == 0 {
            signs.begun.notify_one();
        }
        Self { signs, answered: false }
    }

    /// How many calls the server has room for at once, as that changes. Waits until it is told.
    pub(crate) async fn room(&self) -> watch::Receiver<usize> {
        let mut room = self.signs.room.subscribe();
        room.wait_for(|room| *room != UNTOLD).await.expect("the sender is among the signs");
        room
    }

    /// Ends the call, which was answered.
    pub(crate) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.signs.calls.fetch_sub(1, Ordering::Relaxed) == 1 && !self.answered {
            self.signs.in_vain.store(true, Ordering::Relaxed);
            // It may be the first to wait in vain.
            self.signs.begun.notify_one();
        }
    }
}

/// A stream of bytes of which it is known when something came.
pub(super) struct Heard<T> {
    pub(super) stream: T,
    pub(super) signs: Arc<Signs>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Heard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Poll::Ready(Err(error)) = &polled
            && let Some(found) = Mismatch::of(error)
        {
            self.signs.mismatch.get_or_init(|| found);
        }
        if buffer.filled().len() > before {
            self.signs.hear();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Heard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
