//! TLS and passwords against a real PostgreSQL.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

/// An authority of certificates.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate for that name, and its key.
    pub(crate) fn certify(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A database that takes encrypted connections with a password only. Its certificate is for `localhost`.
fn encrypted(authority: &Authority) -> Option<Cluster> {
    let mut cluster = Cluster::start()?;
    let url = format!("postgres://tgm@127.0.0.1:{}/postgres?sslmode=disable", cluster.port);
    let mut connection = Connection::new(Settings::parse(&url, &|_| None).unwrap()).unwrap();
    let set = "ALTER ROLE tgm PASSWORD 'a secret'";
    connection.run(WITHIN, async |client, _| Ok(client.batch_execute(set).await?)).unwrap();
    cluster.kill();

    let (certificate, key) = authority.certify("localhost");
    cluster.write("server.crt", &certificate);
    cluster.write("server.key", &key);
    cluster.write("pg_hba.conf", "hostssl all all 127.0.0.1/32 scram-sha-256\n");
    cluster.write("postgresql.auto.conf", "ssl = on\n");
    cluster.resume();
    Some(cluster)
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn a_connection_is_encrypted_and_verified_as_its_url_says() {
    let (authority, other) = (Authority::new(), Authority::new());
    let Some(cluster) = encrypted(&authority) else { return };
    let folder = tempfile::tempdir().unwrap();
    let port = cluster.port;
    let right = file(folder.path(), "right.pem", &authority.pem).display().to_string();
    let wrong = file(folder.path(), "wrong.pem", &other.pem).display().to_string();
    let text = format!("localhost:{port}:*:tgm:wrong\\:\n127.0.0.1:{port}:postgres:tgm:a secret\n");
    let some = file(folder.path(), "some", &text).display().to_string();
    let all =
        file(folder.path(), "all", &format!("*:{port}:*:tgm:a secret\n")).display().to_string();
    let open = |host: &str, query: &str, passwords: &str| {
        let url = format!("postgres://tgm@{host}:{port}/postgres?{query}");
        let variable = |name: &str| (name == "PGPASSFILE").then(|| passwords.to_owned());
        let settings = Settings::parse(&url, &variable).unwrap();
        let opened = PostgresElections::open(settings, TTL, SECRET, WITHIN);
        opened.map(drop).map_err(|error| error.to_string())
    };
    let full = format!("sslmode=verify-full&sslrootcert={right}");
    let chain = format!("sslmode=verify-ca&sslrootcert={right}");
    let wrong_full = format!("sslmode=verify-full&sslrootcert={wrong}");
    let wrong_require = format!("sslmode=require&sslrootcert={wrong}");
    for (host, query) in [
        ("localhost", &*full),
        ("localhost", &chain),
        ("127.0.0.1", &chain),
        ("127.0.0.1", "sslmode=require"),
        ("127.0.0.1", "sslmode=prefer"),
        ("127.0.0.1", ""),
    ] {
        assert_eq!(open(host, query, &all), Ok(()), "{host} {query}");
    }
    for (host, query, passwords, problem) in [
        ("127.0.0.1", &*full, &all, "certificate"),
        ("localhost", &wrong_full, &all, "certificate"),
        ("127.0.0.1", &wrong_require, &all, "certificate"),
        ("127.0.0.1", "sslmode=disable", &all, "no encryption"),
        ("localhost", &full, &some, "password authentication failed"),
    ] {
        let refused = open(host, query, passwords).unwrap_err();
        assert!(refused.contains(problem), "{host} {query}: {refused}");
        assert!(!refused.contains("secret") && !refused.contains("wrong:"), "{refused}");
    }
    assert_eq!(open("127.0.0.1", &chain, &some), Ok(()));
}
