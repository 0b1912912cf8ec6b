use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tempfile::TempDir;

use super::*;

/// A folder of TLS files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str) -> NamedFile {
        let path = self.path(name);
        path.into()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Writes a new certificate and returns its key.
    fn renew(&self, name: &str) -> KeyPair {
        let mut params = CertificateParams::new(vec!["sessions.example".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        self.write(name, &params.self_signed(&key).unwrap().pem());
        key
    }

    fn tls(&self) -> Tls {
        let verify = Verify::File(self.file("ca.pem"));
        let identity =
            Some(Identity { certificate: self.file("own.pem"), key: self.file("own.key") });
        Tls::new(TlsFiles { verify, identity }, Protocol::Http2).unwrap()
    }
}

fn folder() -> (Folder, Tls) {
    let folder = Folder::new();
    folder.renew("ca.pem");
    let key = folder.renew("own.pem");
    folder.write("own.key", &key.serialize_pem());
    let tls = folder.tls();
    (folder, tls)
}

#[tokio::test]
async fn files_that_did_not_change_are_used_as_they_were() {
    let (_folder, tls) = folder();
    let before = tls.refresh().await;
    assert!(Arc::ptr_eq(&before, &tls.refresh().await));
    assert_eq!(before.alpn_protocols, [b"h2"]);
}

#[tokio::test]
async fn files_that_changed_are_used_by_the_next_handshake() {
    let (folder, tls) = folder();
    let before = tls.refresh().await;
    folder.renew("ca.pem");
    let trusted = tls.refresh().await;
    assert!(!Arc::ptr_eq(&before, &trusted));
    let key = folder.renew("own.pem");
    folder.write("own.key", &key.serialize_pem());
    let shown = tls.refresh().await;
    assert!(!Arc::ptr_eq(&trusted, &shown));
    assert!(Arc::ptr_eq(&shown, &tls.refresh().await));
}

#[tokio::test]
async fn the_last_sound_files_stay_in_use_while_those_there_are_broken() {
    let (folder, tls) = folder();
    let before = tls.refresh().await;
    let sound = std::fs::read_to_string(folder.path("ca.pem")).unwrap();
    for broken in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nnonsense\n"] {
        folder.write("ca.pem", broken);
        assert!(Arc::ptr_eq(&before, &tls.refresh().await), "{broken}");
        assert!(tls.in_use.lock().warned.is_some());
    }
    std::fs::remove_file(folder.path("ca.pem")).unwrap();
    assert!(Arc::ptr_eq(&before, &tls.refresh().await));
    folder.write("ca.pem", &sound);
    assert!(Arc::ptr_eq(&before, &tls.refresh().await));
    assert_eq!(tls.in_use.lock().warned, None);
}

#[tokio::test]
async fn a_certificate_that_was_replaced_before_its_key_waits_for_it() {
    let (folder, tls) = folder();
    let before = tls.refresh().await;
    let key = folder.renew("own.pem");
    assert!(Arc::ptr_eq(&before, &tls.refresh().await));
    let told = tls.in_use.lock().warned.clone();
    assert!(matches!(&told, Some(Unusable::Together(_))), "{told:?}");
    folder.write("own.key", &key.serialize_pem());
    assert!(!Arc::ptr_eq(&before, &tls.refresh().await));
}

#[test]
fn a_file_that_cannot_be_used_is_named_and_a_key_is_never_shown() {
    let folder = Folder::new();
    let key = folder.renew("ca.pem");
    folder.write("own.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
    folder.write("own.key", &key.serialize_pem().replace("BEGIN", "BEGUN"));
    let read = |verify, identity: Option<(&str, &str)>| {
        let identity = identity.map(|(certificate, key)| Identity {
            certificate: folder.file(certificate),
            key: folder.file(key),
        });
        let read = Tls::new(TlsFiles { verify, identity }, Protocol::Http2);
        read.map(|tls| format!("{tls:?}")).map_err(|error| error.to_string())
    };
    let error = read(Verify::File(folder.file("absent.pem")), None).unwrap_err();
    assert!(error.starts_with("`ca-file=") && error.contains("No such file"), "{error}");
    let hidden =
        NamedFile { shown: "$FOLDER/ca.pem".into(), ..NamedFile::from(folder.path("absent.pem")) };
    let error = read(Verify::File(hidden), None).unwrap_err();
    assert!(error.starts_with("`ca-file=$FOLDER/ca.pem`: No such file"), "{error}");
    let error = read(Verify::File(folder.file("own.pem")), None).unwrap_err();
    assert!(error.contains("own.pem`: TLS cannot be set up: it is not valid PEM"), "{error}");
    let error = read(Verify::Nothing, Some(("own.pem", "own.key"))).unwrap_err();
    assert!(error.starts_with("`client-cert-file="), "{error}");
    let error = read(Verify::Nothing, Some(("ca.pem", "own.key"))).unwrap_err();
    assert!(error.ends_with("own.key`: TLS cannot be set up: there is no private key in it"));
    folder.write("own.key", &key.serialize_pem());
    let shown = read(Verify::Nothing, Some(("ca.pem", "own.key"))).unwrap();
    let secret = key.serialize_pem();
    assert!(!shown.contains(secret.lines().nth(1).unwrap()), "{shown}");
}
