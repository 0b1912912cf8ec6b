//! Connections to one server, or to whichever of a list answers.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::Authority;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::host::Host;
use crate::mismatch::Mismatch;
use crate::protocol::Protocol;
use crate::race::{Others, race};
use crate::tls::{Tls, TlsFiles, Unusable};
use crate::unreached::Unreached;
use crate::watched::{Expected, Watched};

/// How long a connection is idle before TCP sends keep-alive probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// The most servers of a list. All of them are tried within one deadline.
pub const MOST_HOSTS: usize = 16;

/// A stream of bytes to and from a server.
pub trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytestream for T {}

/// Resolves a host and a port to addresses, the preferred one first.
pub type Resolve = Arc<dyn Fn(String, u16) -> Resolving + Send + Sync>;

type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Makes connections to one server, or to the first of a list that answers.
pub struct Way {
    /// At least one.
    hosts: Vec<Host>,
    /// The number of the server that is tried first: the one that answered last.
    last: AtomicUsize,
    protocol: Protocol,
    /// With the name that the certificate of each server must have.
    tls: Option<(Tls, Vec<ServerName<'static>>)>,
    resolve: Resolve,
}

impl Way {
    /// Makes the way to `first` and, while that is silent or gone, to `further` servers in this order.
    /// Only the first [`MOST_HOSTS`] are used. Nothing is sent yet.
    pub fn new(first: Host, further: impl IntoIterator<Item = Host>, protocol: Protocol) -> Self {
        let resolve = |host: String, port| -> Resolving {
            Box::pin(async move { Ok(lookup_host((host, port)).await?.collect()) })
        };
        let hosts = [first].into_iter().chain(further).take(MOST_HOSTS).collect();
        Self { hosts, last: AtomicUsize::new(0), protocol, tls: None, resolve: Arc::new(resolve) }
    }

    /// Adds TLS to all servers. The files are read now, and again before every handshake.
    ///
    /// # Errors
    ///
    /// [`Unusable`] names the file that cannot be used, or says that a host cannot.
    pub fn with_tls(mut self, files: TlsFiles) -> Result<Self, Unusable> {
        let names = self.hosts.iter().map(Host::server_name).collect::<Result<_, _>>()?;
        self.tls = Some((Tls::new(files, self.protocol)?, names));
        Ok(self)
    }

    /// Resolves hosts by `resolve` instead of by the system.
    #[must_use]
    pub fn resolved_by(mut self, resolve: Resolve) -> Self {
        self.resolve = resolve;
        self
    }

    /// Tries the servers, and the addresses of each, in parallel. Returns what `greet` makes of the first
    /// stream on which a server answers it, and the number of this server in the list. `greet` learns
    /// whether there are other addresses.
    ///
    /// The server that answered last is tried first, and then the others in the order of the list.
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
    ) -> Result<(T, usize), Unreached>
    where
        G: Future<Output = io::Result<T>>,
    {
        let last = self.last.load(Ordering::Relaxed);
        let others = (0..self.hosts.len()).filter(|host| *host != last);
        let order: Vec<usize> = [last].into_iter().chain(others).collect();
        let resolve = |host: usize| {
            let host = &self.hosts[host];
            (self.resolve)(host.name.clone(), host.port)
        };
        let greet = &greet;
        let reached = race(&order, deadline, resolve, dial, |host, stream, others| async move {
            greet(self.secure(host, stream).await?, others).await
        });
        let (host, reached) = reached.await.map_err(|tries| {
            let hosts = self.hosts.iter().map(Host::shown).collect();
            Unreached { hosts, tries }
        })?;
        if self.last.swap(host, Ordering::Relaxed) != host {
            tracing::info!(server = %self.hosts[host], "connected to another server of the list");
        }
        Ok((reached, host))
    }

    /// Returns whether there is more than one server.
    pub(crate) fn is_list(&self) -> bool {
        self.hosts.len() > 1
    }

    /// Returns the authority of a server; `None` for the first of the list, which requests name.
    pub(crate) fn authority(&self, host: usize) -> Option<Authority> {
        if host == 0 { None } else { self.hosts[host].authority() }
    }

    /// Notes that a server was reached and does not answer any more. If it is the one that would be tried
    /// first, the next one of the list is.
    pub(crate) fn silent(&self, host: usize) {
        let next = (host + 1) % self.hosts.len();
        // An error means that another server has answered meanwhile.
        let _ = self.last.compare_exchange(host, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Makes the TLS handshake on a connection, if there is TLS.
    async fn secure(&self, host: usize, stream: TcpStream) -> io::Result<Box<dyn Bytestream>> {
        let Some((tls, names)) = &self.tls else {
            let watch = Some(Expected::Plain(self.protocol));
            return Ok(Box::new(Watched { stream, watch }));
        };
        let connector = TlsConnector::from(tls.refresh().await);
        let stream = Watched { stream, watch: Some(Expected::Tls) };
        let stream = connector.connect(names[host].clone(), stream).await;
        let stream = stream.map_err(|error| handshake_error(&self.hosts[host], &error))?;
        let agreed = stream.get_ref().1.alpn_protocol();
        if self.protocol == Protocol::Http2 && agreed != Some(self.protocol.alpn()) {
            return Err(io::Error::other("the server does not speak HTTP/2"));
        }
        Ok(Box::new(stream))
    }
}

/// Returns the error of a handshake that failed. A mismatch has a message of its own.
fn handshake_error(host: &Host, error: &io::Error) -> io::Error {
    if let Some(mismatch) = Mismatch::of(error) {
        return mismatch.into();
    }
    io::Error::new(error.kind(), host.hide_in(format!("the TLS handshake failed: {error}")))
}

/// Writes the servers with commas between them, as messages show them.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}{host}")?;
        }
        Ok(())
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
