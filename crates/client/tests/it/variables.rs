//! Errors about a server that cannot be reached show the variables of the session URL, and never
//! their values.

use std::error::Error as _;
use std::net::TcpListener;
use std::sync::Arc;

use tgm_session::{Dsn, Error, Pool, SessionRequest, TgmConfig, TgmPool};

#[tokio::test]
async fn no_error_about_an_unreachable_server_shows_the_value_of_a_variable() {
    // No program listens on this port, because the listener is dropped.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (url, host) in [
        ("tgm://$HOST:$PORT?plaintext=true&borrow-timeout=200ms", "127.0.0.1"),
        ("tgm://$HOST:$PORT?insecure=true&borrow-timeout=200ms", "127.0.0.1"),
        ("tgm://$HOST:$PORT?plaintext=true&borrow-timeout=200ms", "hidden.invalid"),
    ] {
        let dsn = Dsn::parse_with(url, |name| {
            Some(if name == "HOST" { host.to_owned() } else { port.to_string() })
        });
        let plugin = TgmPool::connect(&TgmConfig::from_dsn(&dsn.unwrap()).unwrap()).unwrap();
        let mut shown = format!("{plugin:?}");
        let error = Pool::new(Arc::new(plugin)).borrow(SessionRequest::new("t1r", "acme")).await;
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        shown.push_str(&format!(" {error} {error:?}"));
        let mut cause = error.source();
        assert!(cause.is_some(), "{error}");
        while let Some(error) = cause {
            shown.push_str(&format!(" {error}"));
            cause = error.source();
        }
        assert!(!shown.contains(host) && !shown.contains(&port.to_string()), "{shown}");
    }
}
