//! The parameters of `tgm://`.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::dsn::{Dsn, invalid, wrong};
use crate::error::Error;

/// Where a URL without a host leads.
const DEFAULT_HOST: &str = "session.thegraph.market";

/// How to reach a session server, and how to behave towards it.
///
/// Every field is a parameter of the URL; see the crate's table of them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TgmConfig {
    /// The host; an IPv6 address in its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether to speak HTTP/2 without TLS.
    pub plaintext: bool,
    /// Whether to accept any certificate.
    pub insecure: bool,
    /// A private certificate authority, instead of those of the system.
    pub ca_file: Option<PathBuf>,
    /// The certificate this client shows, and its key.
    pub client_identity: Option<(PathBuf, PathBuf)>,
    /// What this client is known by; `Debug` does not show it.
    pub indexer_api_key: Option<SecretString>,
    /// The longest time between two keep-alives of one lease.
    pub keep_alive_delay: Duration,
    /// Most sessions of one organization and service that the pool admits by itself.
    pub max_sessions_per_organization: Option<u64>,
    /// The minimal life sent when a session is released, instead of the one the server told.
    pub minimal_life: Option<Duration>,
    /// How long a borrow may take, retries included.
    pub borrow_timeout: Duration,
    /// How long a borrow keeps trying while a ceiling is reached.
    pub borrow_wait: Duration,
    /// What happens while the server cannot be reached.
    pub on_unavailable: OnUnavailable,
}

/// What a pool does while its server cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnUnavailable {
    /// Borrows are refused, and a session ends when one TTL has passed without a keep-alive.
    #[default]
    Deny,
    /// Sessions go on, and borrows are admitted up to
    /// [`TgmConfig::max_sessions_per_organization`], or 10. They are borrowed for real when the
    /// server is back; one that it refuses ends.
    Allow,
}

impl TgmConfig {
    /// Reads the parameters of a `tgm://` URL.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] names the parameter that is unknown, wrong, or contradicts
    /// another one.
    pub fn from_dsn(dsn: &Dsn) -> Result<Self, Error> {
        let mut p = dsn.parameters();
        let plaintext = p.flag("plaintext");
        let config = Self {
            host: dsn.host().unwrap_or(DEFAULT_HOST).to_owned(),
            port: dsn.port().unwrap_or(if plaintext { 80 } else { 443 }),
            plaintext,
            insecure: p.flag("insecure"),
            ca_file: p.text("ca-file").map(PathBuf::from),
            client_identity: match (p.text("client-cert-file"), p.text("client-key-file")) {
                (Some(cert), Some(key)) => Some((cert.into(), key.into())),
                (None, None) => None,
                _ => {
                    return Err(invalid(
                        "gives only one of `client-cert-file` and `client-key-file`; both are needed",
                    ));
                }
            },
            // An empty key is no key, which is what a variable that is not set comes to.
            indexer_api_key: p
                .secret("indexer-api-key")
                .filter(|key| !key.expose_secret().trim().is_empty()),
            keep_alive_delay: p
                .duration("request-keep-alive-delay")?
                .unwrap_or(Duration::from_secs(20)),
            max_sessions_per_organization: p
                .count(&["default-max-request-per-organization", "default-max-request-per-user"])?,
            minimal_life: p.duration("minimal-worker-life-duration")?,
            borrow_timeout: p.duration("borrow-timeout")?.unwrap_or(Duration::from_secs(5)),
            borrow_wait: p.duration("borrow-wait")?.unwrap_or_default(),
            on_unavailable: match p.text("on-unavailable") {
                None | Some("deny") => OnUnavailable::Deny,
                Some("allow") => OnUnavailable::Allow,
                Some(other) => {
                    return Err(wrong("on-unavailable", other, "is neither `deny` nor `allow`"));
                }
            },
        };
        p.finish()?;
        config.check()?;
        Ok(config)
    }

    /// Returns `host:port`.
    pub fn endpoint(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    fn check(&self) -> Result<(), Error> {
        if self.keep_alive_delay.is_zero() {
            return Err(invalid("gives `request-keep-alive-delay=0`, and it must be above 0"));
        }
        if self.borrow_timeout.is_zero() {
            return Err(invalid("gives `borrow-timeout=0`, and it must be above 0"));
        }
        if self.plaintext && (self.ca_file.is_some() || self.client_identity.is_some()) {
            return Err(invalid("gives certificate files, which `plaintext=true` has no use for"));
        }
        if self.insecure && self.ca_file.is_some() {
            return Err(invalid("gives `ca-file`, which `insecure=true` has no use for"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TgmConfig, Error> {
        TgmConfig::from_dsn(&Dsn::parse_with(text, |_| String::new())?)
    }

    fn message(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn urls_in_production_lead_where_they_always_did() {
        for (url, endpoint) in [
            ("", "session.thegraph.market:443"),
            ("tgm://", "session.thegraph.market:443"),
            ("tgm://?plaintext=true", "session.thegraph.market:80"),
            ("tgm://h", "h:443"),
            ("tgm://h?plaintext=true", "h:80"),
            ("tgm://h?plaintext=TRUE", "h:443"),
            ("tgm://h:8080", "h:8080"),
            ("tgm://h:8080?plaintext=true", "h:8080"),
            ("tgm://[::1]", "[::1]:443"),
            ("tgm://[::1]:9010", "[::1]:9010"),
        ] {
            assert_eq!(read(url).unwrap().endpoint(), endpoint, "{url}");
        }
    }

    #[test]
    fn every_parameter_has_the_documented_default() {
        let config = read("tgm://h").unwrap();
        assert!(!config.plaintext && !config.insecure);
        assert_eq!(config.keep_alive_delay, Duration::from_secs(20));
        assert_eq!(config.max_sessions_per_organization, None);
        assert_eq!(config.minimal_life, None);
        assert_eq!(config.borrow_timeout, Duration::from_secs(5));
        assert_eq!(config.borrow_wait, Duration::ZERO);
        assert_eq!(config.on_unavailable, OnUnavailable::Deny);
        assert!(config.indexer_api_key.is_none() && config.ca_file.is_none());
        assert!(config.client_identity.is_none());
    }

    #[test]
    fn every_parameter_is_read() {
        let config = read(
            "tgm://h?insecure=true&request-keep-alive-delay=1m30s\
             &default-max-request-per-organization=7&indexer-api-key=k%261\
             &minimal-worker-life-duration=250ms&on-unavailable=deny&borrow-timeout=2s\
             &borrow-wait=3s&client-cert-file=c.pem&client-key-file=k.pem",
        )
        .unwrap();
        assert!(config.insecure);
        assert_eq!(config.keep_alive_delay, Duration::from_secs(90));
        assert_eq!(config.max_sessions_per_organization, Some(7));
        assert_eq!(config.indexer_api_key.unwrap().expose_secret(), "k&1");
        assert_eq!(config.minimal_life, Some(Duration::from_millis(250)));
        assert_eq!(config.on_unavailable, OnUnavailable::Deny);
        let allowed = read("tgm://h?on-unavailable=allow").unwrap();
        assert_eq!(allowed.on_unavailable, OnUnavailable::Allow);
        assert_eq!(config.borrow_timeout, Duration::from_secs(2));
        assert_eq!(config.borrow_wait, Duration::from_secs(3));
        assert_eq!(config.client_identity, Some(("c.pem".into(), "k.pem".into())));
        assert_eq!(read("tgm://h?ca-file=ca.pem").unwrap().ca_file, Some("ca.pem".into()));
    }

    #[test]
    fn the_maximum_is_read_and_checked_under_both_of_its_names_and_not_under_two_at_once() {
        for name in ["default-max-request-per-organization", "default-max-request-per-user"] {
            let maximum = |value| read(&format!("tgm://h?{name}={value}"));
            for count in [0, 4] {
                let read = maximum(count.to_string()).unwrap();
                assert_eq!(read.max_sessions_per_organization, Some(count));
            }
            for wrong in ["invalid", "-1", "1.5", ""] {
                let message = maximum(wrong.to_owned()).unwrap_err().to_string();
                assert!(message.contains(&format!("`{name}={wrong}`")), "{message}");
            }
        }
        let both = "default-max-request-per-organization=1&default-max-request-per-user=1";
        assert!(message(&format!("tgm://h?{both}")).contains("its old name"));
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for (url, about) in [
            ("tgm://h?request-keep-alive-delay=0", "must be above 0"),
            ("tgm://h?request-keep-alive-delay=20", "has no unit"),
            ("tgm://h?request-keep-alive-delay=-1s", "is negative"),
            ("tgm://h?borrow-timeout=0s", "must be above 0"),
            ("tgm://h?borrow-wait=soon", "is not a duration"),
            ("tgm://h?on-unavailable=maybe", "is neither `deny` nor `allow`"),
            ("tgm://h?client-cert-file=c.pem", "both are needed"),
            ("tgm://h?client-key-file=c.pem", "both are needed"),
            ("tgm://h?plaintext=true&ca-file=ca.pem", "has no use for"),
            ("tgm://h?insecure=true&ca-file=ca.pem", "has no use for"),
            ("tgm://h?keep-alive-delay=1s", "nearest is `request-keep-alive-delay`"),
            ("tgm://h?max_sessions=1", "`max_sessions`"),
        ] {
            assert!(message(url).contains(about), "{url}: {}", message(url));
        }
    }

    #[test]
    fn a_key_of_nothing_or_of_blanks_is_no_key() {
        for url in ["tgm://h?indexer-api-key=", "tgm://h?indexer-api-key=%20%20"] {
            assert!(read(url).unwrap().indexer_api_key.is_none(), "{url}");
        }
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let config = read("tgm://h?indexer-api-key=s3cret").unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("s3cret") && shown.contains("REDACTED"), "{shown}");
    }
}
