//! TLS of the gRPC port: the certificate is loaded from files, and again when they change.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use store::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;
use crate::config::tls::{configure, readable};
use crate::config::watch::{self, Digest, Watched};
use crate::error::Error;

/// How long, and how many bytes, are read from a client after its handshake failed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_UNREAD: u64 = 64 * 1024;

/// The certificate in force, and the TLS configuration with it.
pub(super) struct Tls {
    paths: Vec<PathBuf>,
    clock: Arc<dyn Clock>,
    current: ArcSwap<ServerConfig>,
    /// When the certificate in force expires, in Unix time.
    not_after: Arc<AtomicI64>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl Tls {
    /// Loads `files`, and returns with them what has to be watched for changes; `None` without TLS.
    ///
    /// # Errors
    ///
    /// A file cannot be used, or a file that another one needs is missing.
    pub(super) fn load(
        files: &TlsFiles,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<(Self, Watched)>, Error> {
        let paths = files.paths()?;
        if paths.is_empty() {
            return Ok(None);
        }
        let read = paths.iter().map(|path| readable(path, watch::read(path)));
        let contents = read.collect::<Result<Vec<_>, _>>()?;
        let digests = contents.iter().map(|contents| Digest::of(contents));
        let watched = Watched::new(paths.iter().cloned().zip(digests));
        let (config, not_after) = configure(&paths, &contents, clock.wall())?;
        let (file, until) = (paths[0].display(), not_after);
        tracing::info!(%file, %until, "the certificate is valid");
        let current = ArcSwap::from_pointee(config);
        let not_after = Arc::new(AtomicI64::new(not_after.as_unix()));
        Ok(Some((Self { paths, clock, current, not_after }, watched)))
    }

    /// When the certificate in force expires, in Unix time, now and after every change.
    pub(super) fn not_after(&self) -> Arc<AtomicI64> {
        self.not_after.clone()
    }

    /// Returns an acceptor with the certificate that is in force now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.load_full().into()
    }

    /// Takes the certificate from the new contents of the files. Open connections keep theirs. If a file
    /// cannot be used, the previous certificate stays in force.
    pub(super) fn reload(&self, contents: Vec<io::Result<Vec<u8>>>) {
        let read = self.paths.iter().zip(contents).map(|(path, read)| readable(path, read));
        let configured = read
            .collect::<Result<Vec<_>, _>>()
            .and_then(|contents| configure(&self.paths, &contents, self.clock.wall()));
        match configured {
            Ok((config, not_after)) => {
                self.current.store(Arc::new(config));
                self.not_after.store(not_after.as_unix(), Ordering::Relaxed);
                let (file, until) = (self.paths[0].display(), not_after);
                tracing::info!(%file, %until, "new connections get the new certificate");
            }
            Err(error) => tracing::error!(%error, "the previous certificate stays in force"),
        }
    }
}

/// Closes a connection whose handshake failed so that the client receives the alert: if bytes of the
/// client were unread, TCP would reset the connection and lose the alert.
pub(super) async fn close_after_alert(mut stream: TcpStream) {
    let read = async {
        stream.shutdown().await?;
        let mut unread = stream.take(MAX_UNREAD);
        tokio::io::copy(&mut unread, &mut tokio::io::sink()).await
    };
    match tokio::time::timeout(CLOSE_TIMEOUT, read).await {
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => tracing::trace!(%error, "the client closed the connection first"),
    }
}
