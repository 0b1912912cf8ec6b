//! The way to a server: TCP, and TLS where the URL does not say `plaintext=true`.

use std::io;

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service as _;

use super::config::TgmConfig;
use crate::dsn::GivenFile;
use crate::error::Error;
use crate::pool::BoxFuture;

/// What is spoken inside of TLS.
const HTTP_2: &[u8] = b"h2";

/// How long a connection is silent before TCP looks whether its far end is still there.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// A stream of bytes to and from a server.
pub(crate) trait Bytestream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytestream for T {}

/// Makes streams of bytes to one server.
pub(crate) type Connect =
    Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Bytestream>>> + Send + Sync>;

/// Makes what reaches the server that `config` describes. Nothing is sent before the first call.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the host, or a certificate file, cannot be used.
pub(crate) fn connect(config: &TgmConfig) -> Result<Connect, Error> {
    let uri = origin(config)?;
    // It tries all addresses of a name, the other family soon when the first does not answer.
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(LOOK_AFTER));
    if config.plaintext {
        return Ok(Arc::new(move || {
            let connecting = tcp.clone().call(uri.clone());
            Box::pin(async { Ok(Box::new(plain(connecting.await)?) as Box<dyn Bytestream>) })
        }));
    }
    let host = config.host.text().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|_| nowhere(config))?;
    let tls = TlsConnector::from(Arc::new(tls(config)?));
    Ok(Arc::new(move || {
        let connecting = tcp.clone().call(uri.clone());
        let (tls, name) = (tls.clone(), name.clone());
        Box::pin(async move {
            let stream = tls.connect(name, plain(connecting.await)?).await.map_err(no_tls)?;
            if stream.get_ref().1.alpn_protocol() != Some(HTTP_2) {
                return Err(io::Error::other("the server does not speak HTTP/2"));
            }
            Ok(Box::new(stream) as Box<dyn Bytestream>)
        })
    }))
}

/// What the server is called in requests.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the host cannot be used.
pub(crate) fn origin(config: &TgmConfig) -> Result<Uri, Error> {
    let scheme = if config.plaintext { "http" } else { "https" };
    format!("{scheme}://{}", config.endpoint()).parse().map_err(|_| nowhere(config))
}

fn nowhere(config: &TgmConfig) -> Error {
    Error::invalid(format!("`{}` is not a place on the network", config.shown_endpoint()))
}

fn plain<E>(connected: Result<TokioIo<TcpStream>, E>) -> io::Result<TcpStream>
where
    E: std::error::Error + Send + Sync + 'static,
{
    connected.map(TokioIo::into_inner).map_err(io::Error::other)
}

/// Says of a handshake that failed what was tried, and what helps where the server has no TLS.
fn no_tls(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    let hint = match cause {
        Some(rustls::Error::InvalidMessage(_)) => "; a server without TLS needs `plaintext=true`",
        _ => "",
    };
    io::Error::new(error.kind(), format!("the TLS handshake failed: {error}{hint}"))
}

fn tls(config: &TgmConfig) -> Result<ClientConfig, Error> {
    let wrong = |error: rustls::Error| Error::invalid(format!("TLS cannot be set up: {error}"));
    // A library takes the provider it was built with and never installs one for the process.
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    let builder = if config.insecure {
        tracing::warn!(
            server = config.shown_endpoint(),
            "insecure=true: the certificate of the session server is not checked"
        );
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(ring::default_provider())))
    } else {
        builder.with_root_certificates(match &config.ca_file {
            Some(file) => authorities(file)?,
            None => authorities_of_the_system()?,
        })
    };
    let mut tls = match &config.client_identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("client-cert-file", certificate)?;
            let pem = read("client-key-file", key)?;
            // The reason of the parser would repeat a line of what may be a key.
            let key = PrivateKeyDer::from_pem_slice(&pem)
                .map_err(|_| unusable("client-key-file", key, "there is no private key in it"))?;
            builder.with_client_auth_cert(chain, key).map_err(wrong)?
        }
    };
    tls.alpn_protocols = vec![HTTP_2.to_vec()];
    Ok(tls)
}

fn authorities(file: &GivenFile) -> Result<RootCertStore, Error> {
    let mut authorities = RootCertStore::empty();
    for certificate in certificates("ca-file", file)? {
        let added = authorities.add(certificate);
        added.map_err(|error| unusable("ca-file", file, &error.to_string()))?;
    }
    Ok(authorities)
}

fn authorities_of_the_system() -> Result<RootCertStore, Error> {
    let loaded = rustls_native_certs::load_native_certs();
    if !loaded.errors.is_empty() {
        tracing::debug!(errors = ?loaded.errors, "some of the system's certificates are left out");
    }
    let mut authorities = RootCertStore::empty();
    let (added, _) = authorities.add_parsable_certificates(loaded.certs);
    if added == 0 {
        return Err(Error::invalid(
            "TLS cannot be set up: the system has no certificate authorities; name one by `ca-file`",
        ));
    }
    Ok(authorities)
}

/// The certificates in a file, of which there has to be one at least.
fn certificates(parameter: &str, file: &GivenFile) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(parameter, file)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable(parameter, file, "it is not sound PEM"))?;
    if certificates.is_empty() {
        return Err(unusable(parameter, file, "there is no certificate in it, as PEM"));
    }
    Ok(certificates)
}

fn read(parameter: &str, file: &GivenFile) -> Result<Vec<u8>, Error> {
    std::fs::read(file.path())
        .map_err(|error| Error::invalid(format!("`{parameter}={file}`: {error}")))
}

fn unusable(parameter: &str, file: &GivenFile, problem: &str) -> Error {
    Error::invalid(format!("`{parameter}={file}`: TLS cannot be set up: {problem}"))
}

/// Accepts any certificate, but still has the server prove that it holds the certificate's key.
#[derive(Debug)]
struct AnyCertificate(CryptoProvider);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::dsn::Dsn;

    fn try_connect(url: &str) -> Result<Connect, Error> {
        connect(&TgmConfig::from_dsn(&Dsn::parse_with(url, |_| None)?)?)
    }

    #[test]
    fn a_way_is_made_before_anyone_listens() {
        for url in [
            "tgm://h?plaintext=true",
            "tgm://[::1]:1?plaintext=true",
            "tgm://h?insecure=true",
            "tgm://[::1]:1?insecure=true",
            "tgm://127.0.0.1?insecure=true",
        ] {
            assert!(try_connect(url).is_ok(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_is_told_apart_from_one_that_hangs_up() {
        for (said, hint) in [(&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], true), (b"", false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                // With words of the client unread, TCP would reset the connection and lose what is said.
                assert!(stream.read(&mut [0; 16 * 1024]).await.unwrap() > 0);
                stream.write_all(said).await.unwrap();
                stream.shutdown().await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            };
            let connect = try_connect(&format!("tgm://{address}?insecure=true")).unwrap();
            let (connected, ()) = tokio::join!(connect(), serve);
            let error = connected.err().unwrap().to_string();
            assert!(error.contains("the TLS handshake failed"), "{error}");
            assert_eq!(error.contains("`plaintext=true`"), hint, "{error}");
        }
    }

    #[test]
    fn a_certificate_file_that_cannot_be_used_is_named() {
        let message = |url: &str| try_connect(url).err().unwrap().to_string();
        assert!(message("tgm://h?ca-file=/nowhere/ca.pem").contains("`ca-file=/nowhere/ca.pem`"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("not.pem");
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nnonsense\n").unwrap();
        let file = file.display();
        let named = format!("`ca-file={file}`: TLS cannot be set up");
        assert!(message(&format!("tgm://h?ca-file={file}")).contains(&named));
        let identity =
            format!("tgm://h?client-cert-file={file}&client-key-file={file}&insecure=true");
        let named = format!("`client-cert-file={file}`: TLS cannot be set up");
        assert!(message(&identity).contains(&named));
    }
}
