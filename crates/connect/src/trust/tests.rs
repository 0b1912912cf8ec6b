use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls::crypto::ring;

use super::*;

/// A time at which the certificates that rcgen makes by default are valid.
const NOW: u64 = 1_790_000_000;

/// The parameters of a certificate as `openssl req -x509` makes it: a self-signed authority with
/// this common name and these other names.
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

/// Verifies the server `name`, which presents the certificate `shown`.
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
fn a_self_signed_certificate_that_was_given_is_trusted() {
    let given = signed_by_itself(&own("sessions", &["sessions.example", "192.0.2.7"]));
    for name in ["sessions.example", "192.0.2.7"] {
        assert_eq!(verify(&[&given], &given, name, NOW), Ok(()), "{name}");
    }
    // A certificate with the same names and another key is not trusted.
    let other = signed_by_itself(&own("sessions", &["sessions.example", "192.0.2.7"]));
    assert!(verify(&[&given], &other, "sessions.example", NOW).is_err());
    assert!(verify(&[&other], &given, "sessions.example", NOW).is_err());
}

#[test]
fn a_given_certificate_is_trusted_for_its_names_only() {
    let given = signed_by_itself(&own("sessions.example", &["other.example"]));
    for name in ["sessions.example", "192.0.2.7"] {
        let reason = reason(verify(&[&given], &given, name, NOW));
        assert!(matches!(reason, CertificateError::NotValidForNameContext { .. }), "{reason:?}");
    }
}

#[test]
fn a_given_certificate_without_other_names_is_trusted_for_its_common_name() {
    let given = signed_by_itself(&own("Sessions.example", &[]));
    assert_eq!(verify(&[&given], &given, "sessions.example", NOW), Ok(()));
    assert!(verify(&[&given], &given, "example", NOW).is_err());
    let given = signed_by_itself(&own("192.0.2.7", &[]));
    assert_eq!(verify(&[&given], &given, "192.0.2.7", NOW), Ok(()));
    assert!(verify(&[&given], &given, "192.0.2.8", NOW).is_err());
}

#[test]
fn a_given_certificate_is_trusted_only_while_it_is_valid() {
    let mut params = own("sessions", &["sessions.example"]);
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2027, 1, 1);
    let given = signed_by_itself(&params);
    let (begin, end) = (params.not_before.unix_timestamp(), params.not_after.unix_timestamp());
    let at = |now: i64| verify(&[&given], &given, "sessions.example", now.try_into().unwrap());
    assert_eq!((at(begin), at(end)), (Ok(()), Ok(())));
    // `verify_given` returns these variants; webpki returns others, which contain the times.
    let early = reason(at(begin - 1));
    assert!(matches!(early, CertificateError::NotValidYet), "{early:?}");
    let late = reason(at(end + 1));
    assert!(matches!(late, CertificateError::Expired), "{late:?}");
}

#[test]
fn a_given_certificate_is_trusted_without_its_issuer() {
    let authority = Issuer::new(own("authority", &[]), KeyPair::generate().unwrap());
    let params = CertificateParams::new(vec!["sessions.example".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let given = params.signed_by(&key, &authority).unwrap().der().clone();
    assert_eq!(verify(&[&given], &given, "sessions.example", NOW), Ok(()));
    let other = params.signed_by(&key, &authority).unwrap().der().clone();
    assert_ne!(given, other);
    assert!(verify(&[&given], &other, "sessions.example", NOW).is_err());
}
