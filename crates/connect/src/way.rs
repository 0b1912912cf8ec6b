//! The way to one server.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::first::{First, Spoken};
use crate::mismatch::Mismatch;
use crate::protocol::Protocol;
use crate::race::{Others, Unreached, race};
use crate::tls::{Tls, TlsFiles, Unusable};

/// How long a connection is silent before TCP looks whether its far end is still there.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// A stream of bytes to and from a server.
pub trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytestream for T {}

/// Finds the addresses of a host, the best first, for a port.
pub type Resolve = Arc<dyn Fn(String, u16) -> Resolving + Send + Sync>;

type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Makes connections to one server.
pub struct Way {
    host: String,
    port: u16,
    protocol: Protocol,
    tls: Option<(Tls, ServerName<'static>)>,
    resolve: Resolve,
    shown: Option<Shown>,
}

/// What messages write instead of a place that they may not show.
struct Shown {
    host: String,
    place: String,
}

impl Way {
    /// The way to `port` of `host`, an IPv6 address with or without its brackets. Nothing is sent.
    pub fn new(host: &str, port: u16, protocol: Protocol) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let resolve = |host: String, port| -> Resolving {
            Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) })
        };
        Self { host, port, protocol, tls: None, resolve: Arc::new(resolve), shown: None }
    }

    /// The same way, of which messages show neither host nor addresses, but these instead.
    #[must_use]
    pub fn shown_as(mut self, host: String, place: String) -> Self {
        self.shown = Some(Shown { host, place });
        self
    }

    /// The same way, with TLS. The files are read, and read again before every handshake.
    ///
    /// # Errors
    ///
    /// [`Unusable`] says which file, or that the host, cannot be used.
    pub fn with_tls(mut self, files: TlsFiles) -> Result<Self, Unusable> {
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|_| Unusable::Host(self.to_string()))?;
        self.tls = Some((Tls::new(files, self.protocol)?, name));
        Ok(self)
    }

    /// The same way, with the addresses of the host found by `resolve` instead of the system.
    #[must_use]
    pub fn resolved_by(mut self, resolve: Resolve) -> Self {
        self.resolve = resolve;
        self
    }

    /// Connects to whichever address of the host is first to answer what `greet` says; it is told
    /// whether there is any other.
    ///
    /// Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`Unreached`] says what came of each address, at `deadline` at the latest.
    pub async fn connect<T, G>(
        &self,
        deadline: Instant,
        greet: impl Fn(Box<dyn Bytestream>, Others) -> G,
    ) -> Result<T, Unreached>
    where
        G: Future<Output = io::Result<T>>,
    {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "it was not resolved in time");
        let addresses = timeout_at(deadline, (self.resolve)(self.host.clone(), self.port)).await;
        let addresses = addresses.unwrap_or_else(|_| Err(late())).map_err(Unreached::NoAddress)?;
        if addresses.is_empty() {
            return Err(Unreached::NoAddress(io::ErrorKind::NotFound.into()));
        }
        let greet = &greet;
        let reached = race(addresses, deadline, dial, |stream, others| async move {
            greet(self.secure(stream).await?, others).await
        });
        reached.await.map_err(|tries| Unreached::Tried { tries, shown: self.shown.is_none() })
    }

    /// Shakes hands on a connection, where that is to be done.
    async fn secure(&self, stream: TcpStream) -> io::Result<Box<dyn Bytestream>> {
        let Some((tls, name)) = &self.tls else {
            return Ok(Box::new(First::new(stream, self.protocol.spoken())));
        };
        let connector = TlsConnector::from(tls.present().await);
        let stream = First::new(stream, Spoken::Tls);
        let stream = connector.connect(name.clone(), stream).await;
        let stream = stream.map_err(|error| self.no_tls(&error))?;
        let agreed = stream.get_ref().1.alpn_protocol();
        if self.protocol == Protocol::Http2 && agreed != Some(self.protocol.name()) {
            return Err(io::Error::other("the server does not speak HTTP/2"));
        }
        Ok(Box::new(stream))
    }

    /// Says of a handshake that failed what was tried; a mismatch says more by itself.
    fn no_tls(&self, error: &io::Error) -> io::Error {
        if let Some(mismatch) = Mismatch::of(error) {
            return mismatch.into();
        }
        let mut text = format!("the TLS handshake failed: {error}");
        if let Some(shown) = &self.shown {
            text = text.replace(&self.host, &shown.host);
        }
        io::Error::new(error.kind(), text)
    }
}

/// The place of the server as messages write it: `host:port`, if it may be shown.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, shown, .. } = self;
        if let Some(shown) = shown {
            return f.write_str(&shown.place);
        }
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("place", &self.to_string()).finish_non_exhaustive()
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let keep_alive = TcpKeepalive::new().with_time(LOOK_AFTER);
    SockRef::from(&stream).set_tcp_keepalive(&keep_alive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
