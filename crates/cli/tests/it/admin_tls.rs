//! The operator's commands through a proxy that terminates TLS, as they reach a remote server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::harness::{Ran, Serve, command, file, finish, folder};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Terminates TLS in front of `admin` for as long as the test runs. Returns the address of the
/// proxy and the certificate to trust.
fn proxy(folder: &tempfile::TempDir, admin: &str) -> (String, PathBuf) {
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    proxy_showing(params, folder, admin)
}

/// As [`proxy`], with a self-signed certificate of these parameters.
fn proxy_showing(
    params: rcgen::CertificateParams,
    folder: &tempfile::TempDir,
    admin: &str,
) -> (String, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let signed = params.self_signed(&key).unwrap();
    let certificate = file(folder, "proxy.pem", &signed.pem());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let admin = admin.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            // A client that does not trust the certificate closes its connection. Later clients may
            // trust it.
            let _ = forward(StreamOwned::new(connection, stream.unwrap()), &admin);
        }
    });
    (format!("https://localhost:{port}"), certificate)
}

/// Forwards one request without a body, and its answer.
fn forward(
    mut client: StreamOwned<ServerConnection, TcpStream>,
    admin: &str,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut lines = BufReader::new(&mut client);
    while lines.read_line(&mut head)? > 2 {}
    let mut server = TcpStream::connect(admin)?;
    let head = head.trim_end().to_owned() + "\r\nconnection: close\r\n\r\n";
    server.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    client.write_all(&answer)?;
    client.conn.send_close_notify();
    client.flush()
}

fn organizations(admin: &str, trusted: Option<&Path>) -> Ran {
    let mut command = command(["organizations", "--admin", admin, "--format", "json"]);
    command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    if let Some(trusted) = trusted {
        command.env("SSL_CERT_FILE", trusted);
    }
    command.env("TGM_SESSION_ADMIN_TOKEN", "s3cret");
    finish(command)
}

#[test]
fn only_a_proxy_with_a_trusted_certificate_is_called_over_tls() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\n[organizations.acme]\n");
    let policy = policy.to_str().unwrap();
    let server =
        Serve::start(["--store", "memory:", "--config", policy, "--admin-token", "s3cret"]);
    let (admin, certificate) = proxy(&folder, &server.admin);
    let ran = organizations(&admin, Some(&certificate));
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""));
    assert_eq!(ran.json()[0]["organization"], "acme");

    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let stranger = file(&folder, "stranger.pem", &stranger.cert.pem());
    let ran = organizations(&admin, Some(&stranger));
    assert_eq!((ran.code, &*ran.stdout), (Some(4), ""), "{ran:?}");
    assert!(ran.error().contains("certificate"), "{ran:?}");

    let nothing = file(&folder, "nothing.pem", "");
    let ran = organizations(&admin, Some(&nothing));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.error().contains("SSL_CERT_FILE"), "{ran:?}");
}

#[test]
fn a_call_with_the_wrong_scheme_fails_and_names_the_right_scheme() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\n[organizations.acme]\n");
    let policy = policy.to_str().unwrap();
    let server =
        Serve::start(["--store", "memory:", "--config", policy, "--admin-token", "s3cret"]);
    let (admin, certificate) = proxy(&folder, &server.admin);
    let ran = organizations(&admin.replace("https", "http"), Some(&certificate));
    assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{ran:?}");
    assert!(ran.error().contains("speaks TLS: --admin has to begin with https://"), "{ran:?}");

    let ran = organizations(&format!("https://{}", server.admin), Some(&certificate));
    assert_eq!((ran.code, &*ran.stdout), (Some(2), ""), "{ran:?}");
    let right = "does not speak TLS: --admin has to begin with http://";
    assert!(ran.error().contains(right), "{ran:?}");
}

#[test]
fn a_self_signed_authority_certificate_is_accepted_when_the_machine_trusts_it() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", "[services.t1r]\n[organizations.acme]\n");
    let policy = policy.to_str().unwrap();
    let server =
        Serve::start(["--store", "memory:", "--config", policy, "--admin-token", "s3cret"]);
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let (admin, certificate) = proxy_showing(params, &folder, &server.admin);
    let ran = organizations(&admin, Some(&certificate));
    assert_eq!((ran.code, &*ran.stderr), (Some(0), ""));
    assert_eq!(ran.json()[0]["organization"], "acme");
}
