use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls::crypto::ring;

use super::*;

/// A moment at which what rcgen makes by default is valid.
const NOW: u64 = 1_790_000_000;

/// What `openssl req -x509` makes: an authority that signed itself, with this common name and
/// these other names.
fn own(common: &str, names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    params
}

fn signed_by_itself(params: &CertificateParams) -> CertificateDer<'static> {
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
}

/// Whether the server `name` is believed, who shows this certificate.
fn verify(
    given: &[&CertificateDer<'static>],
    shown: &CertificateDer<'_>,
    name: &str,
    now: u64,
) -> Result<(), Error> {
    let given = given.iter().map(|&given| given.clone()).collect();
    let trusted = Verifier::trust(given, Arc::new(ring::default_provider())).unwrap();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    let name = ServerName::try_from(name).unwrap();
    trusted.verify_server_cert(shown, &[], &name, &[], now).map(drop)
}

fn reason(result: Result<(), Error>) -> CertificateError {
    match result {
        Err(Error::InvalidCertificate(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_certificate_that_signed_itself_is_believed_when_it_was_given() {
    let given = signed_by_itself(&own("sessions", &["sessions.example", "192.0.2.7"]));
    for name in ["sessions.example", "192.0.2.7"] {
        assert_eq!(verify(&[&given], &given, name, NOW), Ok(()), "{name}");
    }
    // Not by its mere form: the same names, signed by somebody else.
    let other = signed_by_itself(&own("sessions", &["sessions.example", "192.0.2.7"]));
    assert!(verify(&[&given], &other, "sessions.example", NOW).is_err());
    assert!(verify(&[&other], &given, "sessions.example", NOW).is_err());
}

#[test]
fn it_is_believed_for_its_names_alone() {
    let given = signed_by_itself(&own("sessions.example", &["other.example"]));
    for name in ["sessions.example", "192.0.2.7"] {
        let reason = reason(verify(&[&given], &given, name, NOW));
        assert!(matches!(reason, CertificateError::NotValidForNameContext { .. }), "{reason:?}");
    }
}

#[test]
fn it_is_believed_for_its_common_name_where_it_has_no_other() {
    let given = signed_by_itself(&own("Sessions.example", &[]));
    assert_eq!(verify(&[&given], &given, "sessions.example", NOW), Ok(()));
    assert!(verify(&[&given], &given, "example", NOW).is_err());
    let given = signed_by_itself(&own("192.0.2.7", &[]));
    assert_eq!(verify(&[&given], &given, "192.0.2.7", NOW), Ok(()));
    assert!(verify(&[&given], &given, "192.0.2.8", NOW).is_err());
}

#[test]
fn it_is_believed_while_it_is_valid_and_no_longer() {
    let mut params = own("sessions", &["sessions.example"]);
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2027, 1, 1);
    let given = signed_by_itself(&params);
    let (begin, end) = (params.not_before.unix_timestamp(), params.not_after.unix_timestamp());
    let at = |now: i64| verify(&[&given], &given, "sessions.example", now.try_into().unwrap());
    assert_eq!((at(begin), at(end)), (Ok(()), Ok(())));
    // The rules of authorities word it with the times.
    let early = reason(at(begin - 1));
    assert!(matches!(early, CertificateError::NotValidYet), "{early:?}");
    let late = reason(at(end + 1));
    assert!(matches!(late, CertificateError::Expired), "{late:?}");
}

#[test]
fn a_certificate_that_was_given_without_who_signed_it_is_believed() {
    let authority = Issuer::new(own("authority", &[]), KeyPair::generate().unwrap());
    let params = CertificateParams::new(vec!["sessions.example".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let given = params.signed_by(&key, &authority).unwrap().der().clone();
    assert_eq!(verify(&[&given], &given, "sessions.example", NOW), Ok(()));
    let other = params.signed_by(&key, &authority).unwrap().der().clone();
    assert_ne!(given, other);
    assert!(verify(&[&given], &other, "sessions.example", NOW).is_err());
}
