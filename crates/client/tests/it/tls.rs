//! TLS in front of the real server, with certificates that the test makes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use tempfile::TempDir;
use tgm_session::{Error, Registry, SessionRequest};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy, Running, Server};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring};

use crate::log::Log;

/// A certificate authority, in a folder with everything it signs.
struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as files.
struct Signed {
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Signed {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let place = |kind| self.folder.path().join(format!("{name}.{kind}.pem"));
        let signed = Signed { certificate: place("certificate"), key: place("key") };
        std::fs::write(&signed.certificate, certificate.pem()).unwrap();
        std::fs::write(&signed.key, key.serialize_pem()).unwrap();
        signed
    }
}

/// The real server behind TLS.
struct Behind {
    port: u16,
    shown: Arc<Mutex<TlsAcceptor>>,
    /// How many connections were accepted.
    came: Arc<AtomicUsize>,
    /// The open connections.
    open: Arc<Mutex<JoinSet<()>>>,
}

impl Behind {
    async fn serve(shown: TlsAcceptor) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let behind = Self {
            port,
            shown: Arc::new(Mutex::new(shown)),
            came: Arc::default(),
            open: Arc::default(),
        };
        let (shown, came, open) = (behind.shown.clone(), behind.came.clone(), behind.open.clone());
        let server = plaintext().await;
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                came.fetch_add(1, Ordering::Relaxed);
                let accepting = shown.lock().accept(connection);
                // A client that does not trust the certificate disconnects during the handshake.
                if let Ok(stream) = accepting.await {
                    open.lock().spawn(server.serve_stream(stream));
                }
            }
        });
        behind
    }

    /// Uses another acceptor for new connections, and breaks the open ones.
    fn renew(&self, shown: TlsAcceptor) {
        *self.shown.lock() = shown;
        self.cut();
    }

    fn cut(&self) {
        self.open.lock().abort_all();
    }
}

/// An acceptor with this certificate. If `clients` is given, it requires client certificates of
/// that authority.
fn showing(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    clients: Option<&Authority>,
) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(clients.file()).unwrap()).unwrap();
            let roots = Arc::new(roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut tls = builder.with_single_cert(vec![certificate], key).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(tls))
}

/// An acceptor with a certificate for `localhost` that `authority` signs.
fn signed_by(authority: &Authority, clients: Option<&Authority>) -> TlsAcceptor {
    signed_for("localhost", authority, clients)
}

/// An acceptor with a certificate for `name` that `authority` signs.
fn signed_for(name: &str, authority: &Authority, clients: Option<&Authority>) -> TlsAcceptor {
    let signed = authority.sign(name, ExtendedKeyUsagePurpose::ServerAuth);
    let certificate = CertificateDer::from_pem_file(&signed.certificate).unwrap();
    showing(certificate, PrivateKeyDer::from_pem_file(&signed.key).unwrap(), clients)
}

async fn serve(authority: &Authority, clients: Option<&Authority>) -> Behind {
    Behind::serve(signed_by(authority, clients)).await
}

async fn plaintext() -> Running {
    let policy = Policy::parse("[services.t1r]\n", "test.toml").unwrap().policy;
    let mut config = Config::new(policy, StoreUrl::Memory);
    config.listen.set_port(0);
    config.admin_listen.set_port(0);
    config.threads = 1;
    Server::bind(config).await.unwrap().start().await.unwrap()
}

/// Borrows a session and releases it.
async fn borrow(url: &str) -> Result<(), Error> {
    let pool = Registry::default().connect(url).await?;
    let session = pool.borrow(SessionRequest::new("t1r", "acme")).await?;
    session.release().await?;
    Ok(())
}

/// The message of a borrow that fails as unavailable.
async fn unavailable(url: &str) -> String {
    match borrow(url).await {
        Err(Error::Unavailable { message, .. }) => message,
        other => panic!("{url}: {other:?}"),
    }
}

/// The message of a borrow that fails because the URL does not fit the server.
async fn mismatched(url: &str) -> String {
    match borrow(url).await {
        Err(Error::InvalidArgument { message, .. }) => message,
        other => panic!("{url}: {other:?}"),
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_its_file_is_given_and_no_other() {
    let authority = Authority::new();
    let port = serve(&authority, None).await.port;
    let given = authority.file();
    borrow(&format!("tgm://localhost:{port}?ca-file={}", given.display())).await.unwrap();

    let stranger = Authority::new();
    let other = stranger.file();
    let url = format!("tgm://localhost:{port}?borrow-timeout=1s&ca-file={}", other.display());
    let message = unavailable(&url).await;
    assert!(message.contains("certificate"), "{message}");
    let url = format!("tgm://127.0.0.1:{port}?borrow-timeout=1s&ca-file={}", given.display());
    let message = unavailable(&url).await;
    assert!(message.contains("not valid for name"), "{message}");
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_the_system_trusts_is_enough() {
    let port = serve(&Authority::new(), None).await.port;
    let url = format!("tgm://localhost:{port}?borrow-timeout=1s");
    assert!(unavailable(&url).await.contains("certificate"));
    // Environment variables name the authorities of the system, so the test needs another process.
    let authority = Authority::new();
    let child = tokio::task::spawn_blocking(move || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tls::borrows_by_the_authorities_of_its_environment", "--ignored"])
            .env("SSL_CERT_FILE", authority.file())
            .env_remove("SSL_CERT_DIR")
            .output()
            .unwrap()
    });
    let child = child.await.unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
#[ignore = "runs within a_certificate_of_an_authority_that_the_system_trusts_is_enough"]
async fn borrows_by_the_authorities_of_its_environment() {
    let trusted = PathBuf::from(std::env::var("SSL_CERT_FILE").unwrap());
    renew_under_a_pool(&trusted, "").await;
}

#[tokio::test]
async fn an_open_pool_trusts_a_ca_file_that_was_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("trusted.pem");
    renew_under_a_pool(&trusted, &format!("ca-file={}", trusted.display())).await;
}

/// Replaces the authority of a server and the authority that its client trusts, while a pool is
/// open.
async fn renew_under_a_pool(trusted: &Path, parameters: &str) {
    let (old, new) = (Authority::new(), Authority::new());
    std::fs::copy(old.file(), trusted).unwrap();
    let server = serve(&old, None).await;
    let url = format!("tgm://localhost:{}?{parameters}", server.port);
    let pool = Registry::default().connect(&url).await.unwrap();
    let borrow = async || pool.borrow(SessionRequest::new("t1r", "acme")).await;
    borrow().await.unwrap().release().await.unwrap();
    // A broken file is not used. The client keeps the authorities that it read before.
    std::fs::write(trusted, "nonsense").unwrap();
    server.cut();
    borrow().await.unwrap().release().await.unwrap();
    server.renew(signed_by(&new, None));
    std::fs::copy(new.file(), trusted).unwrap();
    borrow().await.unwrap().release().await.unwrap();
    assert!(server.came.load(Ordering::Relaxed) >= 3);
}

#[tokio::test]
async fn a_certificate_that_signed_itself_is_trusted_when_it_is_the_ca_file() {
    // A certificate as `openssl req -x509 -subj /CN=localhost` makes it.
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "localhost");
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let given = folder.path().join("given.pem");
    std::fs::write(&given, certificate.pem()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let server = Behind::serve(showing(certificate.der().clone(), key, None)).await;
    let url = |host| {
        let (port, given) = (server.port, given.display());
        format!("tgm://{host}:{port}?borrow-timeout=1s&ca-file={given}")
    };
    borrow(&url("localhost")).await.unwrap();
    let message = unavailable(&url("127.0.0.1")).await;
    assert!(message.contains("not valid for name"), "{message}");
}

#[tokio::test]
async fn a_server_that_requires_client_certificates_gets_one_and_refuses_clients_without() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let port = serve(&authority, Some(&clients)).await.port;
    let shown = clients.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
    let stranger = authority.sign("stranger", ExtendedKeyUsagePurpose::ClientAuth);
    let url =
        format!("tgm://localhost:{port}?borrow-timeout=1s&ca-file={}", authority.file().display());
    let with = |signed: &Signed| {
        let (certificate, key) = (signed.certificate.display(), signed.key.display());
        format!("{url}&client-cert-file={certificate}&client-key-file={key}")
    };
    borrow(&with(&shown)).await.unwrap();
    for url in [url.clone(), with(&stranger)] {
        let message = unavailable(&url).await;
        assert!(message.contains("received fatal alert"), "{message}");
    }
}

#[tokio::test]
async fn insecure_accepts_any_certificate_and_warns_that_it_does() {
    let authority = Authority::new();
    let port = serve(&authority, None).await.port;
    let url = format!("tgm://127.0.0.1:{port}?insecure=true&indexer-api-key=s3cret");
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).finish();
    let pool = {
        let _here = tracing::subscriber::set_default(subscriber);
        Registry::default().connect(&url).await.unwrap()
    };
    drop(pool.borrow(SessionRequest::new("t1r", "acme")).await.unwrap());
    let said = log.text();
    assert!(said.contains("WARN") && said.contains("not checked"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn the_first_attempt_without_tls_at_a_server_with_tls_fails_and_names_the_parameter() {
    let authority = Authority::new();
    let server = serve(&authority, None).await;
    let url = format!("tgm://localhost:{}?plaintext=true", server.port);
    let message = mismatched(&url).await;
    let place = format!("the server at localhost:{} speaks TLS", server.port);
    assert!(message.contains(&place) && message.contains("`plaintext=true`"), "{message}");
    assert_eq!(server.came.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_first_attempt_with_tls_at_a_server_without_tls_fails_and_names_the_parameter() {
    let server = plaintext().await;
    let plain = server.grpc_address().port();
    borrow(&format!("tgm://localhost:{plain}?plaintext=true")).await.unwrap();
    let url = format!("tgm://localhost:{plain}?insecure=true&on-unavailable=allow");
    let message = mismatched(&url).await;
    let place = format!("the server at localhost:{plain} does not speak TLS");
    assert!(message.contains(&place) && message.contains("`plaintext=true`"), "{message}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn each_server_of_a_list_must_have_a_certificate_for_its_own_name() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let serve_for = |name, by| Behind::serve(signed_for(name, by, None));
    let unknown = serve_for("localhost", &stranger).await.port;
    let localhost = serve_for("localhost", &authority).await.port;
    let address = serve_for("127.0.0.1", &authority).await.port;
    let parameters = format!("borrow-timeout=1s&ca-file={}", authority.file().display());
    for first in [unknown, address] {
        for second in [format!("127.0.0.1:{address}"), format!("localhost:{localhost}")] {
            borrow(&format!("tgm://localhost:{first}?also={second}&{parameters}")).await.unwrap();
        }
    }
    // Each certificate is for the name of the other server.
    let url = format!("tgm://localhost:{address}?also=127.0.0.1:{localhost}&{parameters}");
    let message = unavailable(&url).await;
    assert_eq!(message.matches("not valid for name").count(), 2, "{message}");
    borrow(&format!("tgm://localhost:{unknown}?also=127.0.0.1:{address}&insecure=true"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_wrong_plaintext_parameter_is_reported_if_it_is_wrong_for_every_server() {
    let (server, with_tls) = (plaintext().await, serve(&Authority::new(), None).await.port);
    let plain = server.grpc_address().port();
    let url = format!("tgm://localhost:{with_tls}?also=localhost:{plain}&plaintext=true");
    borrow(&url).await.unwrap();
    let other = serve(&Authority::new(), None).await.port;
    let url = format!("tgm://localhost:{with_tls}?also=localhost:{other}&plaintext=true");
    let message = mismatched(&url).await;
    let places = format!("localhost:{with_tls},localhost:{other} speaks TLS");
    assert!(message.contains(&places), "{message}");
    server.stop().await.unwrap();
}
