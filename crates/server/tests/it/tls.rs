//! TLS on the gRPC port, with certificates that the test makes and changes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tgm_session::{Registry, SessionRequest};
use tgm_session_server::{Error, Server, TlsFiles};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::attached::metric;
use crate::certificates::{Authority, Files, Signed};
use crate::harness::{TestServer, eventually};
use crate::log::Log;

const SHORT: Duration = Duration::from_millis(150);

/// Borrows a session with the client of this project and releases it.
async fn borrow(server: &TestServer, parameters: &str) -> Result<(), tgm_session::Error> {
    let port = server.running.grpc_address().port();
    let url = format!("tgm://localhost:{port}?borrow-timeout=1s&{parameters}");
    let pool = Registry::default().connect(&url).await?;
    let session = pool.borrow(SessionRequest::new("t1r", "acme")).await?;
    session.release().await?;
    Ok(())
}

async fn connect(
    server: &TestServer,
    client: &ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    connect_by(server, &TlsConnector::from(Arc::new(client.clone()))).await
}

async fn connect_by(
    server: &TestServer,
    connector: &TlsConnector,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.running.grpc_address()).await?;
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// The certificate that the server shows on a new connection.
async fn shown(server: &TestServer, client: &ClientConfig) -> CertificateDer<'static> {
    let stream = connect(server, client).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

fn der(signed: &Signed) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap()
}

type Calls = SendRequest<Full<Bytes>>;

async fn calls(stream: TlsStream<TcpStream>) -> Calls {
    let (calls, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    calls
}

/// Whether a gRPC health check on this open connection succeeds.
async fn is_served(calls: &mut Calls) -> bool {
    let request = http::Request::post("https://localhost/grpc.health.v1.Health/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(&[0; 5])))
        .unwrap();
    let Ok(answer) = calls.send_request(request).await else { return false };
    let body = answer.into_body().collect().await.unwrap();
    body.trailers().is_some_and(|trailers| trailers["grpc-status"] == "0")
}

#[tokio::test]
async fn the_client_of_the_project_borrows_over_tls_only_if_it_trusts_the_authority() {
    let authority = Authority::new();
    let files = Files::new(&authority.sign(|_| {}), None);
    files.write("ca.pem", &authority.pem);
    files.write("other.pem", &Authority::new().pem);
    let server = files.serve().await;
    let ca = |name: &str| format!("ca-file={}", files.path(name).display());
    borrow(&server, &ca("ca.pem")).await.unwrap();
    let error = borrow(&server, &ca("other.pem")).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    borrow(&server, "plaintext=true").await.unwrap_err();
    server.stop().await;
}

#[tokio::test]
async fn both_versions_of_tls_and_both_protocols_inside_are_served() {
    let authority = Authority::new();
    let server = Files::new(&authority.sign(|_| {}), None).serve().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for protocol in [&b"h2"[..], b"http/1.1"] {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut client = ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            client.alpn_protocols = vec![protocol.to_vec()];
            let mut stream = connect(&server, &client).await.unwrap();
            let tls = stream.get_ref().1;
            assert_eq!(tls.protocol_version(), Some(version.version));
            assert_eq!(tls.alpn_protocol(), Some(protocol));
            if protocol == b"h2" {
                assert!(is_served(&mut calls(stream).await).await);
            } else {
                let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
                stream.write_all(request).await.unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.unwrap();
                assert!(answer.starts_with(b"HTTP/1.1 200 "), "{answer:?}");
            }
        }
    }
}

#[tokio::test]
async fn under_mutual_tls_a_client_without_a_certificate_of_the_authority_is_refused() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let files = Files::new(&authority.sign(|_| {}), Some(&clients));
    files.write("ca.pem", &authority.pem);
    let ca = format!("ca-file={}", files.path("ca.pem").display());
    let server = files.serve().await;
    let with = |signed: Signed, name: &str| {
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        files.write(&certificate, &signed.certificate);
        files.write(&key, &signed.key);
        let (certificate, key) = (files.path(&certificate), files.path(&key));
        let (certificate, key) = (certificate.display(), key.display());
        format!("{ca}&client-cert-file={certificate}&client-key-file={key}")
    };
    borrow(&server, &with(clients.sign(|_| {}), "client")).await.unwrap();
    for stranger in [ca.clone(), with(authority.sign(|_| {}), "stranger")] {
        let error = borrow(&server, &stranger).await.unwrap_err();
        assert!(error.to_string().contains("received fatal alert"), "{error}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_open_connections_go_on() {
    let authority = Authority::new();
    let (old, new) = (authority.sign(|_| {}), authority.sign(|_| {}));
    let files = Files::new(&old, None);
    let server = files.serve().await;
    let client = authority.client(None);
    assert_eq!(shown(&server, &client).await, der(&old));
    let mut open = calls(connect(&server, &client).await.unwrap()).await;
    assert!(is_served(&mut open).await);

    // Two writes, as operators make them: between the writes, certificate and key do not match.
    files.write("server.pem", &new.certificate);
    files.write("server.key", &new.key);
    eventually("the new certificate is shown", || async {
        shown(&server, &client).await == der(&new)
    })
    .await;
    assert!(is_served(&mut open).await, "the open connection broke");
    let mut fresh = calls(connect(&server, &client).await.unwrap()).await;
    assert!(is_served(&mut fresh).await);
}

#[tokio::test]
async fn an_invalid_file_is_refused_by_name_and_the_certificate_in_force_stays() {
    let authority = Authority::new();
    let (old, other) = (authority.sign(|_| {}), authority.sign(|_| {}));
    let files = Files::new(&old, None);
    let (log, _logging) = Log::start();
    let server = files.serve().await;
    let client = authority.client(None);
    let (certificate, key) = (files.path("server.pem"), files.path("server.key"));
    let secret: String = other.key.lines().nth(1).unwrap().into();
    let breaks: [(&Path, Option<&str>, &str); 5] = [
        (&key, Some(&other.key), "it is not the key of the certificate"),
        (&key, Some("-----BEGIN PRIVATE KEY-----\nAAAA"), "there is no private key in it"),
        (&key, None, "it cannot be read"),
        (&certificate, Some("once upon a time"), "there is no certificate in it"),
        (&certificate, Some(&old.key), "there is no certificate in it"),
    ];
    for (path, text, reason) in breaks {
        match text {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
        let refusal = format!("cannot use {} for TLS: {reason}", path.display());
        eventually(&refusal, || async { log.text().contains(&refusal) }).await;
        assert_eq!(shown(&server, &client).await, der(&old), "{reason}");
        if path == certificate {
            continue;
        }
        files.write("server.key", &old.key);
        let mended = log.text().matches("new connections get").count();
        eventually("it is mended", || async {
            log.text().matches("new connections get").count() > mended
        })
        .await;
    }
    files.write("server.pem", &other.certificate);
    files.write("server.key", &other.key);
    eventually("the next one is shown", || async { shown(&server, &client).await == der(&other) })
        .await;
    assert!(!log.text().contains(&secret), "a key is in the log");
}

#[tokio::test]
async fn a_client_that_is_no_longer_trusted_cannot_resume_either() {
    let (authority, before, after) = (Authority::new(), Authority::new(), Authority::new());
    let files = Files::new(&authority.sign(|_| {}), Some(&before));
    let server = files.serve().await;
    let (old, new) = (before.sign(|_| {}), after.sign(|_| {}));
    // One connector for each client, because the connector keeps the sessions to resume.
    let old = TlsConnector::from(Arc::new(authority.client(Some(&old))));
    let new = TlsConnector::from(Arc::new(authority.client(Some(&new))));
    for _ in 0..2 {
        let mut calls = calls(connect_by(&server, &old).await.unwrap()).await;
        assert!(is_served(&mut calls).await);
    }
    files.write("clients.pem", &after.pem);
    eventually("who is trusted now is served", || async {
        let Ok(stream) = connect_by(&server, &new).await else { return false };
        is_served(&mut calls(stream).await).await
    })
    .await;
    if let Ok(stream) = connect_by(&server, &old).await {
        assert!(!is_served(&mut calls(stream).await).await, "it resumed");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_keeps_a_server_from_starting_and_is_named() {
    let authority = Authority::new();
    let (one, other) = (authority.sign(|_| {}), authority.sign(|_| {}));
    let secret: String = other.key.lines().nth(1).unwrap().into();
    let breaks: [(&str, Option<&str>, &str); 6] = [
        ("server.pem", None, "it cannot be read"),
        ("server.pem", Some(""), "there is no certificate in it"),
        ("server.key", Some(&one.certificate), "there is no private key in it"),
        ("server.key", Some(&other.key), "it is not the key of the certificate"),
        ("clients.pem", Some("-----BEGIN CERTIFICATE-----\n"), "it is not valid PEM"),
        ("clients.pem", Some(&other.key), "there is no certificate in it"),
    ];
    for (name, text, reason) in breaks {
        let files = Files::new(&one, Some(&authority));
        match text {
            Some(text) => files.write(name, text),
            None => std::fs::remove_file(files.path(name)).unwrap(),
        }
        let error = Server::bind(files.config()).await.unwrap_err();
        assert!(matches!(error, Error::Tls { .. }) && error.is_usage(), "{error:?}");
        let said = format!("cannot use {} for TLS: {reason}", files.path(name).display());
        assert!(error.to_string().starts_with(&said), "{error}");
        assert!(!format!("{error} {error:?}").contains(&secret), "{error:?}");
    }
    type Take = fn(&mut TlsFiles);
    let alone: [(Take, &str); 3] = [
        (|tls| tls.key = None, "tls_cert"),
        (|tls| tls.certificate = None, "tls_key"),
        (|tls| (tls.certificate, tls.key) = (None, None), "tls_client_ca"),
    ];
    for (take, name) in alone {
        let mut config = Files::new(&one, Some(&authority)).config();
        take(&mut config.tls);
        let error = Server::bind(config).await.unwrap_err();
        assert!(matches!(error, Error::Setting { name: told, .. } if told == name), "{error:?}");
    }
}

/// A certificate that is valid from January 1 of one year to January 1 of another.
fn of_years(authority: &Authority, from: i32, until: i32) -> Signed {
    authority.sign(|params| {
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
    })
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_today_keeps_a_server_from_starting() {
    let authority = Authority::new();
    for (from, until, reason) in [
        (2020, 2021, "the certificate expired at 2021-01-01T00:00:00Z"),
        (2040, 2041, "the certificate is not valid before 2040-01-01T00:00:00Z"),
    ] {
        let files = Files::new(&of_years(&authority, from, until), None);
        let error = Server::bind(files.config()).await.unwrap_err();
        let file = files.path("server.pem");
        assert_eq!(error.to_string(), format!("cannot use {} for TLS: {reason}", file.display()));
        assert!(error.is_usage());
    }
}

#[tokio::test]
async fn a_new_certificate_that_is_not_valid_today_is_refused_and_the_one_before_stays() {
    let authority = Authority::new();
    let good = of_years(&authority, 2020, 2030);
    let files = Files::new(&good, None);
    let (log, _logging) = Log::start();
    let server = files.serve().await;
    let client = authority.client(None);
    for (bad, reason) in [
        (of_years(&authority, 2020, 2021), "the certificate expired at 2021"),
        (of_years(&authority, 2040, 2041), "the certificate is not valid before 2040"),
    ] {
        files.write("server.pem", &bad.certificate);
        files.write("server.key", &bad.key);
        eventually(reason, || async { log.text().contains(reason) }).await;
        assert_eq!(shown(&server, &client).await, der(&good), "{reason}");
    }
    // 2030-01-01: the metric is about the certificate in force.
    let not_after = metric(&server.running, "tgm_session_certificate_not_after_seconds").await;
    assert_eq!(not_after, 1_893_456_000);
    let next = of_years(&authority, 2020, 2031);
    files.write("server.pem", &next.certificate);
    files.write("server.key", &next.key);
    eventually("the next one is told", || async {
        let name = "tgm_session_certificate_not_after_seconds";
        metric(&server.running, name).await == 1_924_992_000
    })
    .await;
}

#[tokio::test]
async fn an_expired_authority_of_clients_is_not_trusted_and_at_least_one_must_be_valid() {
    let authority = Authority::new();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let over = Authority { issuer: Issuer::new(params, key), pem };

    let files = Files::new(&authority.sign(|_| {}), Some(&over));
    let error = Server::bind(files.config()).await.unwrap_err().to_string();
    let file = files.path("clients.pem");
    assert!(error.starts_with(&format!("cannot use {} for TLS: ", file.display())), "{error}");
    assert!(error.ends_with("the certificate expired at 2020-01-01T00:00:00Z"), "{error}");

    files.write("clients.pem", &format!("{}{}", over.pem, authority.pem));
    let server = files.serve().await;
    for (identity, is_trusted) in
        [(authority.sign(|_| {}), true), (of_years(&over, 2000, 2040), false)]
    {
        let served = match connect(&server, &authority.client(Some(&identity))).await {
            Ok(stream) => is_served(&mut calls(stream).await).await,
            Err(_) => false,
        };
        assert_eq!(served, is_trusted);
    }
}

#[tokio::test]
async fn a_connection_without_tls_or_without_any_bytes_is_closed_soon_and_frees_its_place() {
    let authority = Authority::new();
    let files = Files::new(&authority.sign(|_| {}), None);
    let server = files
        .serve_with(|config| {
            config.max_connections = 1;
            config.port.handshake_timeout = SHORT;
        })
        .await;
    for first in
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"GET / HTTP/1.1\r\n\r\n", b"", &[22, 3]]
    {
        let started = Instant::now();
        let mut stream = TcpStream::connect(server.running.grpc_address()).await.unwrap();
        stream.write_all(first).await.unwrap();
        // The server may end the connection by a TLS alert or by a reset.
        let mut rest = Vec::new();
        let _: std::io::Result<usize> = stream.read_to_end(&mut rest).await;
        let took = started.elapsed();
        assert!(rest.len() < 16 && took < Duration::from_secs(8), "{rest:?} after {took:?}");
    }
    // A TLS handshake and then no HTTP: one timeout covers both.
    let mut silent = connect(&server, &authority.client(None)).await.unwrap();
    let mut rest = Vec::new();
    let _: std::io::Result<usize> = silent.read_to_end(&mut rest).await;
    let mut calls = calls(connect(&server, &authority.client(None)).await.unwrap()).await;
    assert!(is_served(&mut calls).await);
}
