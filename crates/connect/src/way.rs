//! Connections to one server.

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

use crate::mismatch::Mismatch;
use crate::protocol::Protocol;
use crate::race::{Others, race};
use crate::tls::{Tls, TlsFiles, Unusable};
use crate::unreached::Unreached;
use crate::watched::{Expected, Watched};

/// How long a connection is idle before TCP sends keep-alive probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// A stream of bytes to and from a server.
pub trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytestream for T {}

/// Resolves a host and a port to addresses, the preferred one first.
pub type Resolve = Arc<dyn Fn(String, u16) -> Resolving + Send + Sync>;

type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Makes connections to one server.
pub struct Way {
    host: String,
    port: u16,
    protocol: Protocol,
    tls: Option<(Tls, ServerName<'static>)>,
    resolve: Resolve,
    alias: Option<Alias>,
}

/// What messages show instead of the real host and address.
struct Alias {
    host: String,
    place: String,
}

impl Way {
    /// Makes the way to `port` of `host`. An IPv6 address may have its brackets. Nothing is sent yet.
    pub fn new(host: &str, port: u16, protocol: Protocol) -> Self {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let resolve = |host: String, port| -> Resolving {
            Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) })
        };
        Self { host, port, protocol, tls: None, resolve: Arc::new(resolve), alias: None }
    }

    /// Makes messages show `host` and `place` instead of the real host and its addresses.
    #[must_use]
    pub fn shown_as(mut self, host: String, place: String) -> Self {
        self.alias = Some(Alias { host, place });
        self
    }

    /// Adds TLS. The files are read now, and again before every handshake.
    ///
    /// # Errors
    ///
    /// [`Unusable`] names the file that cannot be used, or says that the host cannot.
    pub fn with_tls(mut self, files: TlsFiles) -> Result<Self, Unusable> {
        let name = ServerName::try_from(self.host.clone());
        let name = name.map_err(|_| Unusable::Host(self.to_string()))?;
        self.tls = Some((Tls::new(files, self.protocol)?, name));
        Ok(self)
    }

    /// Resolves the host by `resolve` instead of by the system.
    #[must_use]
    pub fn resolved_by(mut self, resolve: Resolve) -> Self {
        self.resolve = resolve;
        self
    }

    /// Tries the addresses of the host in parallel and returns what `greet` makes of the first stream on
    /// which the server answers it. `greet` learns whether the host has other addresses.
    ///
    /// Cancellation safe.
    ///
    /// # Errors
    ///
    /// [`Unreached`] has the error of each address. It comes at `deadline` at the latest.
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
        reached.await.map_err(|tries| Unreached::Tried { tries, shown: self.alias.is_none() })
    }

    /// Makes the TLS handshake on a connection, if there is TLS.
    async fn secure(&self, stream: TcpStream) -> io::Result<Box<dyn Bytestream>> {
        let Some((tls, name)) = &self.tls else {
            let watch = Some(Expected::Plain(self.protocol));
            return Ok(Box::new(Watched { stream, watch }));
        };
        let connector = TlsConnector::from(tls.refresh().await);
        let stream = Watched { stream, watch: Some(Expected::Tls) };
        let stream = connector.connect(name.clone(), stream).await;
        let stream = stream.map_err(|error| self.handshake_error(&error))?;
        let agreed = stream.get_ref().1.alpn_protocol();
        if self.protocol == Protocol::Http2 && agreed != Some(self.protocol.alpn()) {
            return Err(io::Error::other("the server does not speak HTTP/2"));
        }
        Ok(Box::new(stream))
    }

    /// Returns the error of a handshake that failed. A mismatch has a message of its own.
    fn handshake_error(&self, error: &io::Error) -> io::Error {
        if let Some(mismatch) = Mismatch::of(error) {
            return mismatch.into();
        }
        let mut text = format!("the TLS handshake failed: {error}");
        if let Some(alias) = &self.alias {
            text = text.replace(&self.host, &alias.host);
        }
        io::Error::new(error.kind(), text)
    }
}

/// Writes `host:port`, or what messages show instead.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, alias, .. } = self;
        if let Some(alias) = alias {
            return f.write_str(&alias.place);
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
    let keep_alive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE);
    SockRef::from(&stream).set_tcp_keepalive(&keep_alive)?;
    Ok(stream)
}

#[cfg(test)]
mod tests;
