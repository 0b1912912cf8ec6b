//! TLS and certificates against a real etcd.

use super::*;
use crate::journal::postgres::tests::encrypted::Authority;

#[test]
fn tls_is_used_as_the_variables_of_etcdctl_say() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name).display().to_string();
        std::fs::write(&path, text).unwrap();
        path
    };
    let (authority, other) = (Authority::new(), Authority::new());
    let (right, wrong) = (file("right.pem", &authority.pem), file("wrong.pem", &other.pem));
    let signed = |by: &Authority, name: &str| {
        let (certificate, key) = by.certify("127.0.0.1");
        let [one, two] = ["pem", "key"].map(|end| format!("{name}.{end}"));
        (file(&one, &certificate), file(&two, &key))
    };
    let (certificate, key) = signed(&authority, "server");
    let (own, own_key) = signed(&authority, "own");
    let (foreign, foreign_key) = signed(&other, "foreign");

    let open = |etcd: &Etcd, variables: &[(&str, &str)]| {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let opened = Settings::parse(&etcd.url("fleet"), &variable).map(|settings| {
            let opened = EtcdElections::open(settings, TTL, SECRET, WITHIN);
            opened.map(drop).map_err(|error| error.to_string())
        });
        opened.unwrap_or_else(Err)
    };
    let refused = |etcd: &Etcd, variables: &[(&str, &str)], problem: &str| {
        let error = open(etcd, variables).unwrap_err();
        assert!(error.contains(problem) && !error.contains("ca-file"), "{variables:?}: {error}");
    };

    let flags = [format!("--cert-file={certificate}"), format!("--key-file={key}")];
    let Some(etcd) = Etcd::start(1, &flags.each_ref().map(|flag| &**flag)) else { return };
    assert_eq!(open(&etcd, &[("ETCDCTL_CACERT", &right)]), Ok(()));
    let names = "; ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY say whether and how TLS is used";
    refused(&etcd, &[("ETCDCTL_CACERT", &wrong)], &format!("BadSignature{names}"));
    let system = [("ETCDCTL_INSECURE_TRANSPORT", "false")];
    refused(&etcd, &system, &format!("UnknownIssuer{names}"));
    refused(&etcd, &[], names);

    let [certificate, key] = flags;
    let clients = format!("--trusted-ca-file={right}");
    let flags = ["--client-cert-auth", &clients, &certificate, &key];
    let Some(etcd) = Etcd::start(1, &flags) else { return };
    let with = |certificate, key| {
        [("ETCDCTL_CACERT", &*right), ("ETCDCTL_CERT", certificate), ("ETCDCTL_KEY", key)]
    };
    assert_eq!(open(&etcd, &with(&own, &own_key)), Ok(()));
    refused(&etcd, &[("ETCDCTL_CACERT", &right)], names);
    refused(&etcd, &with(&foreign, &foreign_key), names);
    refused(&etcd, &with(&own, &foreign_key), "TLS cannot be set up");
    refused(&etcd, &with(&own_key, &own_key), "`ETCDCTL_CERT=");
    refused(&etcd, &with(&own, &own), "`ETCDCTL_KEY=");

    let Some(etcd) = Etcd::shared() else { return };
    refused(&etcd, &[("ETCDCTL_CACERT", &right)], names);
}
