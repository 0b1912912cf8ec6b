//! What came out of a variable of the session URL, and a server that cannot be reached there.

use std::error::Error as _;
use std::net::TcpListener;
use std::sync::Arc;

use tgm_session::{Dsn, Error, Pool, SessionRequest, TgmConfig, TgmPool};

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_as_the_url_names_it_down_to_the_first_cause() {
    // Nobody listens there once the listener has gone.
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
