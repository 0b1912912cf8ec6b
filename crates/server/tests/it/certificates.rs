//! Certificates that tests make, and the files of a server that uses them.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, TlsFiles};

use crate::harness::{ManualClock, ROOMY, TestServer, config};

/// An authority that signs certificates.
pub(crate) struct Authority {
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate and its key, as PEM.
pub(crate) struct Signed {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// The TLS configuration of a client that trusts this authority, and shows `identity` if given.
    pub(crate) fn client(&self, identity: Option<&Signed>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(Signed { certificate, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// The TLS files of a server, in a temporary folder.
pub(crate) struct Files {
    pub(crate) folder: TempDir,
    pub(crate) tls: TlsFiles,
}

impl Files {
    pub(crate) fn new(signed: &Signed, clients: Option<&Authority>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let tls = TlsFiles {
            certificate: Some(place("server.pem")),
            key: Some(place("server.key")),
            client_ca: clients.map(|_| place("clients.pem")),
        };
        let files = Self { folder, tls };
        files.write("server.pem", &signed.certificate);
        files.write("server.key", &signed.key);
        if let Some(clients) = clients {
            files.write("clients.pem", &clients.pem);
        }
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = config(ROOMY, &ManualClock::new(), StoreUrl::Memory);
        config.tls = self.tls.clone();
        config
    }

    pub(crate) async fn serve(&self) -> TestServer {
        self.serve_with(|_| {}).await
    }

    pub(crate) async fn serve_with(&self, set: impl FnOnce(&mut Config)) -> TestServer {
        let clock = ManualClock::new();
        let mut config = config(ROOMY, &clock, StoreUrl::Memory);
        config.tls = self.tls.clone();
        set(&mut config);
        TestServer::start(config, clock).await
    }
}
