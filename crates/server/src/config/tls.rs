//! The TLS files of the gRPC port: reads and checks them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lease::WallTime;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use x509_parser::parse_x509_certificate;

use super::watch;
use crate::error::Error;

/// The ALPN protocols: HTTP/2 for gRPC, and HTTP/1.1 for gRPC-Web of browsers and their proxies.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The files, all PEM, that the gRPC port needs for TLS. Without any it is served without TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the server, and the certificates up to its authority.
    pub certificate: Option<PathBuf>,
    /// The private key of the certificate.
    pub key: Option<PathBuf>,
    /// The authorities of client certificates: one of them has to have signed the certificate of a
    /// client. Without them clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// Returns all errors because of which the files cannot be used at this time.
    pub(super) fn check(&self, now: WallTime) -> Vec<Error> {
        let paths = match self.paths() {
            Ok(paths) if paths.is_empty() => return Vec::new(),
            Ok(paths) => paths,
            Err(error) => return vec![error],
        };
        let read: Vec<_> = paths.iter().map(|path| readable(path, watch::read(path))).collect();
        let (contents, wrong): (Vec<_>, Vec<_>) = read.into_iter().partition(Result::is_ok);
        let mut wrong: Vec<_> = wrong.into_iter().filter_map(Result::err).collect();
        if wrong.is_empty() {
            let contents: Vec<_> = contents.into_iter().flatten().collect();
            wrong.extend(configure(&paths, &contents, now).err());
        }
        wrong
    }

    /// The files in the order in which they are read; none without TLS.
    pub(crate) fn paths(&self) -> Result<Vec<PathBuf>, Error> {
        let needs = |name, problem: &str| Err(Error::Setting { name, problem: problem.into() });
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => {
                let files = [Some(certificate), Some(key), self.client_ca.as_ref()];
                Ok(files.into_iter().flatten().cloned().collect())
            }
            (Some(_), None) => needs("tls_cert", "the certificate needs its key: tls_key"),
            (None, Some(_)) => needs("tls_key", "the key needs its certificate: tls_cert"),
            (None, None) if self.client_ca.is_some() => {
                needs("tls_client_ca", "clients can be asked for a certificate under TLS only")
            }
            (None, None) => Ok(Vec::new()),
        }
    }
}

/// Turns the failure to read the file at `path` into an error.
pub(crate) fn readable(path: &Path, read: io::Result<Vec<u8>>) -> Result<Vec<u8>, Error> {
    read.map_err(|error| unusable(path, format!("it cannot be read: {error}")))
}

/// Builds the configuration of rustls from the certificate, the key and, if there are three files, the
/// authorities of clients. Also returns when the certificate expires.
pub(crate) fn configure(
    paths: &[PathBuf],
    contents: &[Vec<u8>],
    now: WallTime,
) -> Result<(ServerConfig, WallTime), Error> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&paths[0], &contents[0])?;
    let not_after = valid_until(&chain[0], now).map_err(|problem| unusable(&paths[0], problem))?;
    // The error of the parser could contain a part of a key, so it is dropped.
    let key = PrivateKeyDer::from_pem_slice(&contents[1])
        .map_err(|_| unusable(&paths[1], "there is no private key in it, as PEM"))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&paths[0], error))?;
    let builder = match (paths.get(2), contents.get(2)) {
        (Some(path), Some(contents)) => {
            builder.with_client_cert_verifier(client_verifier(path, contents, provider, now)?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = paths[0].display();
            unusable(&paths[1], format!("it is not the key of the certificate {certificate}"))
        }
        error => unusable(&paths[1], error),
    })?;
    config.alpn_protocols = PROTOCOLS.map(Vec::from).into();
    Ok((config, not_after))
}

fn client_verifier(
    path: &Path,
    contents: &[u8],
    provider: Arc<CryptoProvider>,
    now: WallTime,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Error> {
    let mut authorities = RootCertStore::empty();
    let mut over = None;
    for certificate in certificates(path, contents)? {
        // rustls does not check whether the certificate of an authority has expired.
        match valid_until(&certificate, now) {
            Ok(_) => authorities.add(certificate).map_err(|error| unusable(path, error))?,
            Err(problem) => {
                let file = path.display();
                tracing::warn!(%file, %problem, "an authority is not trusted");
                over = Some(problem);
            }
        }
    }
    if let (true, Some(problem)) = (authorities.is_empty(), over) {
        return Err(unusable(path, problem));
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider)
        .build()
        .map_err(|error| unusable(path, error))
}

/// The certificates in a file; there has to be at least one.
fn certificates(path: &Path, contents: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(contents)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable(path, "it is not valid PEM"))?;
    if certificates.is_empty() {
        return Err(unusable(path, "there is no certificate in it, as PEM"));
    }
    Ok(certificates)
}

/// When `certificate` expires, if it is valid `now`.
fn valid_until(certificate: &CertificateDer<'_>, now: WallTime) -> Result<WallTime, String> {
    let (_, parsed) = parse_x509_certificate(certificate)
        .map_err(|_| "a certificate in it cannot be parsed".to_owned())?;
    let validity = parsed.validity();
    let [from, until] =
        [validity.not_before, validity.not_after].map(|time| WallTime::from_unix(time.timestamp()));
    if now < from {
        return Err(format!("the certificate is not valid before {from}"));
    }
    if now > until {
        return Err(format!("the certificate expired at {until}"));
    }
    Ok(until)
}

fn unusable(path: &Path, problem: impl fmt::Display) -> Error {
    Error::Tls { path: path.to_owned(), problem: problem.to_string() }
}
