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
    let identity = format!("tgm://h?client-cert-file={file}&client-key-file={file}&insecure=true");
    let named = format!("`client-cert-file={file}`: TLS cannot be set up");
    assert!(message(&identity).contains(&named));
}
