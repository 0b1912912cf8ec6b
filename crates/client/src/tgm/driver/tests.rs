use super::*;

#[test]
fn a_stream_that_is_refused_is_broken_unless_the_server_does_not_know_it() {
    for code in (0..=16).map(Code::from) {
        let why = match code {
            Code::Unimplemented => Detached::Unknown,
            _ => Detached::Broken,
        };
        assert_eq!(refused(&Status::new(code, "")), why, "{code:?}");
        let mut made_up = Status::new(code, "reset");
        made_up.set_source(Arc::new(std::io::Error::other("reset")));
        assert_eq!(refused(&made_up), Detached::Broken, "{code:?}");
    }
}

#[test]
fn every_reason_of_a_revocation_ends_the_session_with_a_message() {
    for (reason, is_quota) in [(0, false), (1, false), (2, false), (3, false), (4, true)] {
        let reason = Reason::try_from(reason).unwrap();
        let revoked = super::reason(reason, "in its own words");
        let silent = super::reason(reason, "");
        for error in [&revoked, &silent] {
            match error {
                Error::QuotaExceeded { message } => assert!(is_quota && !message.is_empty()),
                Error::PermissionDenied { message } => {
                    assert!(!is_quota && !message.is_empty())
                }
                error => panic!("{reason:?}: {error}"),
            }
        }
        assert!(revoked.to_string().ends_with("in its own words"));
    }
    // A reason that only newer servers know is read as unspecified.
    let newer = ::wire::control::Revocation { reason: 99, ..Default::default() };
    assert_eq!(newer.reason(), Reason::Unspecified);
}
