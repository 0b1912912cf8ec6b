//! Verification of the certificate that a server shows.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{VerifierBuilderError, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// Verifies a server: its certificate, if any is trusted, and always that it has the private key.
#[derive(Debug)]
pub(crate) struct Verifier {
    /// `None` accepts every certificate.
    trusted: Option<Trusted>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Accepts certificates that a trusted one has signed, and the trusted ones themselves.
///
/// `openssl req -x509` makes a self-signed certificate that is marked as an authority. By the rules of
/// webpki such a certificate may sign others, and a server must not show it. Here a server may show a
/// certificate that is named as trusted.
#[derive(Debug)]
struct Trusted {
    by_rules: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// Accepts every certificate.
    pub(crate) fn accept_any(provider: &CryptoProvider) -> Self {
        Self { trusted: None, algorithms: provider.signature_verification_algorithms }
    }

    /// Trusts what is in `given`. What cannot be the root of a chain is trusted only by itself.
    pub(crate) fn trust(
        given: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, VerifierBuilderError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(given.iter().cloned());
        let algorithms = provider.signature_verification_algorithms;
        let roots = Arc::new(roots);
        let by_rules = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
        Ok(Self { trusted: Some(Trusted { by_rules, given }), algorithms })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(Trusted { by_rules, given }) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let by_rules =
            by_rules.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if by_rules.is_err() && given.iter().any(|given| given == end_entity) {
            verify_given(end_entity, server_name, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        by_rules
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies the dates and the name of a certificate that was given.
fn verify_given(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let parsed = X509Certificate::from_der(certificate);
    let (_, parsed) = parsed.map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let (validity, at) = (parsed.validity(), i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    if at < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if at > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let by_rules = verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    // webpki ignores the common name, but many self-signed certificates have no other name.
    let names = parsed.subject_alternative_name();
    if by_rules.is_err() && matches!(names, Ok(None)) {
        let mut common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let is_it = |common: &str| match name {
            ServerName::DnsName(name) => name.as_ref().eq_ignore_ascii_case(common),
            ServerName::IpAddress(address) => common.parse() == Ok(IpAddr::from(*address)),
            _ => false,
        };
        if common.any(is_it) {
            return Ok(());
        }
    }
    by_rules
}

#[cfg(test)]
mod tests;
