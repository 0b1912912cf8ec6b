//! The way to the server: one lazy HTTP/2 channel.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::config::TgmConfig;
use crate::error::Error;

/// How long one attempt to connect may take, so that a borrow has time for another.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// How long a connection may be silent under a call before it is pinged, and how long the answer
/// may take. Only under a call: some servers take pings on an idle connection for an attack.
const PING_AFTER: Duration = Duration::from_secs(10);
const PING_DEADLINE: Duration = Duration::from_secs(5);

/// Makes the channel that `config` describes. Nothing is sent before the first call.
///
/// # Errors
///
/// [`Error::InvalidArgument`] when the host, or a certificate file, cannot be used.
pub(crate) fn connect(config: &TgmConfig) -> Result<Channel, Error> {
    let scheme = if config.plaintext { "http" } else { "https" };
    let place = config.endpoint();
    let endpoint = Endpoint::from_shared(format!("{scheme}://{place}"))
        .map_err(|_| Error::invalid(format!("`{place}` is not a place on the network")))?
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_DEADLINE)
        .tcp_keepalive(Some(PING_AFTER));
    let endpoint = if config.plaintext { endpoint } else { with_tls(endpoint, config)? };
    Ok(endpoint.connect_lazy())
}

fn with_tls(endpoint: Endpoint, config: &TgmConfig) -> Result<Endpoint, Error> {
    let mut tls = ClientTlsConfig::new();
    if let Some((certificate, key)) = &config.client_identity {
        tls = tls.identity(Identity::from_pem(
            read("client-cert-file", certificate)?,
            read("client-key-file", key)?,
        ));
    }
    let endpoint = if config.insecure {
        tracing::warn!(
            server = config.endpoint(),
            "insecure=true: the certificate of the session server is not checked"
        );
        endpoint.tls_config_with_verifier(tls, Arc::new(AnyCertificate::new()))
    } else {
        let tls = match &config.ca_file {
            Some(file) => tls.ca_certificate(Certificate::from_pem(read("ca-file", file)?)),
            None => tls.with_native_roots(),
        };
        endpoint.tls_config(tls)
    };
    endpoint.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        Error::invalid(format!("TLS cannot be set up: {}", cause.unwrap_or(error.to_string())))
    })
}

fn read(parameter: &str, file: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(file)
        .map_err(|error| Error::invalid(format!("`{parameter}={}`: {error}", file.display())))
}

/// Accepts any certificate, but still has the server prove that it holds the certificate's key.
#[derive(Debug)]
struct AnyCertificate(CryptoProvider);

impl AnyCertificate {
    fn new() -> Self {
        // A library takes the provider it was built with and never installs one for the process.
        Self(rustls::crypto::ring::default_provider())
    }
}

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
    use super::*;
    use crate::dsn::Dsn;

    fn try_connect(url: &str) -> Result<Channel, Error> {
        connect(&TgmConfig::from_dsn(&Dsn::parse_with(url, |_| String::new())?)?)
    }

    #[tokio::test]
    async fn a_channel_is_made_before_anyone_listens() {
        for url in
            ["tgm://h?plaintext=true", "tgm://[::1]:1?plaintext=true", "tgm://h?insecure=true"]
        {
            assert!(try_connect(url).is_ok(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_certificate_file_that_cannot_be_used_is_named() {
        let message = |url: &str| try_connect(url).unwrap_err().to_string();
        assert!(message("tgm://h?ca-file=/nowhere/ca.pem").contains("`ca-file=/nowhere/ca.pem`"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("not.pem");
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\nnonsense\n").unwrap();
        let file = file.display();
        assert!(message(&format!("tgm://h?ca-file={file}")).contains("TLS cannot be set up"));
        let identity =
            format!("tgm://h?client-cert-file={file}&client-key-file={file}&insecure=true");
        assert!(message(&identity).contains("TLS cannot be set up"));
    }
}
