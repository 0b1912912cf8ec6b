//! The TLS files of the gRPC port and of the fleet: reads and checks them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lease::WallTime;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
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
    let key = private_key(&paths[1], &contents[1])?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&paths[0], error))?;
    let builder = match (paths.get(2), contents.get(2)) {
        (Some(path), Some(contents)) => {
            builder.with_client_cert_verifier(client_verifier(path, contents, provider, now)?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| unmatched(&paths[0], &paths[1], &error))?;
    config.alpn_protocols = PROTOCOLS.map(Vec::from).into();
    Ok((config, not_after))
}

/// Returns all errors because of which a client cannot use these files at this time: the authorities of the
/// server, and a certificate with its key.
pub(super) fn check_client(
    authority: Option<&Path>,
    identity: Option<(&Path, &Path)>,
    now: WallTime,
) -> Vec<Error> {
    let check_authorities =
        |path| authorities(path, &readable(path, watch::read(path))?, now).map(drop);
    let mut errors: Vec<_> =
        authority.map(check_authorities).and_then(Result::err).into_iter().collect();
    let Some((certificate, key)) = identity else { return errors };
    let read = [certificate, key].map(|path| readable(path, watch::read(path)));
    match read {
        [Ok(chain), Ok(private)] => {
            errors.extend(check_identity((certificate, &chain), (key, &private), now).err());
        }
        read => errors.extend(read.into_iter().filter_map(Result::err)),
    }
    errors
}

/// Checks a certificate and its key, each with its path.
fn check_identity(
    certificate: (&Path, &[u8]),
    key: (&Path, &[u8]),
    now: WallTime,
) -> Result<(), Error> {
    let chain = certificates(certificate.0, certificate.1)?;
    valid_until(&chain[0], now).map_err(|problem| unusable(certificate.0, problem))?;
    let private = private_key(key.0, key.1)?;
    CertifiedKey::from_der(chain, private, &ring::default_provider())
        .map(drop)
        .map_err(|error| unmatched(certificate.0, key.0, &error))
}

fn private_key(path: &Path, contents: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    // The error of the parser could contain a part of a key, so it is dropped.
    PrivateKeyDer::from_pem_slice(contents)
        .map_err(|_| unusable(path, "there is no private key in it, as PEM"))
}

fn unmatched(certificate: &Path, key: &Path, error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = certificate.display();
            unusable(key, format!("it is not the key of the certificate {certificate}"))
        }
        error => unusable(key, error),
    }
}

fn client_verifier(
    path: &Path,
    contents: &[u8],
    provider: Arc<CryptoProvider>,
    now: WallTime,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Error> {
    let authorities = Arc::new(authorities(path, contents, now)?);
    WebPkiClientVerifier::builder_with_provider(authorities, provider)
        .build()
        .map_err(|error| unusable(path, error))
}

/// The authorities in a file that are valid `now`; there has to be at least one.
fn authorities(path: &Path, contents: &[u8], now: WallTime) -> Result<RootCertStore, Error> {
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
    Ok(authorities)
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
