//! The parameters of `tgm://`.

use std::path::PathBuf;
use std::time::Duration;

use crate::dsn::{Dsn, Given, GivenFile, invalid};
use crate::error::Error;
use crate::secret::Secret;

/// Where a URL without a host leads.
const DEFAULT_HOST: &str = "session.thegraph.market";

/// How to reach a session server, and how to behave towards it.
///
/// It is read from a URL, or made step by step; every step is a parameter of the URL, and the
/// crate's table of them says what they mean.
///
/// ```
/// use std::time::Duration;
/// use tgm_session::{OnUnavailable, Secret, TgmConfig};
///
/// let config = TgmConfig::new("sessions.example")
///     .port(9010)
///     .indexer_api_key(Secret::new("s3cret"))
///     .borrow_timeout(Duration::from_secs(2))
///     .on_unavailable(OnUnavailable::Allow);
/// assert_eq!(config.endpoint(), "sessions.example:9010");
/// ```
#[derive(Clone, Debug)]
#[must_use = "a configuration reaches nobody by itself"]
pub struct TgmConfig {
    /// An IPv6 address in its brackets.
    pub(crate) host: Given,
    port: Option<u16>,
    /// How messages write the port, if not as it is.
    shown_port: Option<String>,
    pub(crate) plaintext: bool,
    pub(crate) insecure: bool,
    pub(crate) ca_file: Option<GivenFile>,
    /// The certificate that this client shows, and its key.
    pub(crate) client_identity: Option<(GivenFile, GivenFile)>,
    pub(crate) indexer_api_key: Option<Secret>,
    pub(crate) indexer_api_key_file: Option<GivenFile>,
    pub(crate) keep_alive_delay: Duration,
    pub(crate) max_sessions_per_organization: Option<u64>,
    pub(crate) minimal_life: Option<Duration>,
    pub(crate) borrow_timeout: Duration,
    pub(crate) borrow_wait: Duration,
    pub(crate) on_unavailable: OnUnavailable,
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

impl Default for TgmConfig {
    /// The server that a URL without a host leads to.
    fn default() -> Self {
        Self::new(DEFAULT_HOST)
    }
}

impl TgmConfig {
    /// Leads to `host`, an IPv6 address in its brackets, by TLS.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: Given::new(host, None),
            port: None,
            shown_port: None,
            plaintext: false,
            insecure: false,
            ca_file: None,
            client_identity: None,
            indexer_api_key: None,
            indexer_api_key_file: None,
            keep_alive_delay: Duration::from_secs(20),
            max_sessions_per_organization: None,
            minimal_life: None,
            borrow_timeout: Duration::from_secs(5),
            borrow_wait: Duration::ZERO,
            on_unavailable: OnUnavailable::Deny,
        }
    }

    /// Reads the parameters of a `tgm://` URL.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] names the parameter that is unknown, wrong, or contradicts
    /// another one.
    pub fn from_dsn(dsn: &Dsn) -> Result<Self, Error> {
        let default = Self::default();
        let mut p = dsn.parameters();
        let config = Self {
            host: dsn.given_host().cloned().unwrap_or(default.host),
            port: dsn.port(),
            shown_port: dsn.shown_port(),
            plaintext: p.flag("plaintext"),
            insecure: p.flag("insecure"),
            ca_file: p.given("ca-file").map(Given::file),
            client_identity: match (p.given("client-cert-file"), p.given("client-key-file")) {
                (Some(cert), Some(key)) => Some((cert.file(), key.file())),
                (None, None) => None,
                _ => {
                    return Err(invalid(
                        "gives only one of `client-cert-file` and `client-key-file`; both are needed",
                    ));
                }
            },
            // A key of blanks is none, as an empty one is.
            indexer_api_key: p
                .secret("indexer-api-key")
                .filter(|key| !key.expose().trim().is_empty()),
            indexer_api_key_file: p.given("indexer-api-key-file").map(Given::file),
            keep_alive_delay: p
                .duration("request-keep-alive-delay")?
                .unwrap_or(default.keep_alive_delay),
            max_sessions_per_organization: p
                .count(&["default-max-request-per-organization", "default-max-request-per-user"])?,
            minimal_life: p.duration("minimal-worker-life-duration")?,
            borrow_timeout: p.duration("borrow-timeout")?.unwrap_or(default.borrow_timeout),
            borrow_wait: p.duration("borrow-wait")?.unwrap_or(default.borrow_wait),
            on_unavailable: match p.text("on-unavailable") {
                None | Some("deny") => OnUnavailable::Deny,
                Some("allow") => OnUnavailable::Allow,
                Some(_) => {
                    return Err(p.wrong("on-unavailable", "is neither `deny` nor `allow`"));
                }
            },
        };
        p.finish()?;
        config.check()?;
        Ok(config)
    }

    /// Sets the port: 443 without, or 80 with plaintext.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self.shown_port = None;
        self
    }

    /// Speaks HTTP/2 without TLS.
    pub fn plaintext(mut self, plaintext: bool) -> Self {
        self.plaintext = plaintext;
        self
    }

    /// Accepts any certificate.
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Trusts the certificate authorities in this file, and not those of the system.
    pub fn ca_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(file.into().into());
        self
    }

    /// Shows the certificate in one file, whose key is in another.
    pub fn client_identity(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.client_identity = Some((certificate.into().into(), key.into().into()));
        self
    }

    /// Sets what this client is known by.
    pub fn indexer_api_key(mut self, key: Secret) -> Self {
        self.indexer_api_key = Some(key);
        self
    }

    /// Names the file with what this client is known by, which is read again when it changes.
    pub fn indexer_api_key_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.indexer_api_key_file = Some(file.into().into());
        self
    }

    /// Sets the longest time between two keep-alives of one lease.
    pub fn keep_alive_delay(mut self, delay: Duration) -> Self {
        self.keep_alive_delay = delay;
        self
    }

    /// Sets the most sessions of one organization and service that the pool admits by itself.
    pub fn max_sessions_per_organization(mut self, most: u64) -> Self {
        self.max_sessions_per_organization = Some(most);
        self
    }

    /// Sets the minimal life sent when a session is released, instead of the one the server told.
    pub fn minimal_life(mut self, life: Duration) -> Self {
        self.minimal_life = Some(life);
        self
    }

    /// Sets how long a borrow may take, retries included.
    pub fn borrow_timeout(mut self, timeout: Duration) -> Self {
        self.borrow_timeout = timeout;
        self
    }

    /// Sets how long a borrow keeps trying while a ceiling is reached.
    pub fn borrow_wait(mut self, wait: Duration) -> Self {
        self.borrow_wait = wait;
        self
    }

    /// Sets what happens while the server cannot be reached.
    pub fn on_unavailable(mut self, what: OnUnavailable) -> Self {
        self.on_unavailable = what;
        self
    }

    /// Returns `host:port`.
    pub fn endpoint(&self) -> String {
        format!("{}:{}", self.host.text(), self.at_port())
    }

    /// Returns `host:port` as messages write it: with the variables of the URL, and not with what
    /// came out of them.
    pub fn shown_endpoint(&self) -> String {
        match &self.shown_port {
            Some(port) => format!("{}:{port}", self.host),
            None => format!("{}:{}", self.host, self.at_port()),
        }
    }

    /// The port, or the default one.
    pub(crate) fn at_port(&self) -> u16 {
        self.port.unwrap_or(if self.plaintext { 80 } else { 443 })
    }

    /// Refuses what contradicts itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let wrong = |problem| Err(Error::invalid(problem));
        if self.keep_alive_delay.is_zero() {
            return wrong("`request-keep-alive-delay` is 0, and it must be above 0");
        }
        if self.borrow_timeout.is_zero() {
            return wrong("`borrow-timeout` is 0, and it must be above 0");
        }
        if self.plaintext && (self.ca_file.is_some() || self.client_identity.is_some()) {
            return wrong("`plaintext=true` has no use for certificate files");
        }
        if self.insecure && self.ca_file.is_some() {
            return wrong("`insecure=true` has no use for `ca-file`");
        }
        if self.indexer_api_key.is_some() && self.indexer_api_key_file.is_some() {
            return wrong("`indexer-api-key` and `indexer-api-key-file` are given; one is enough");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TgmConfig, Error> {
        TgmConfig::from_dsn(&Dsn::parse_with(text, |_| None)?)
    }

    fn file(path: &str) -> GivenFile {
        PathBuf::from(path).into()
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
        assert_eq!(config.indexer_api_key.unwrap().expose(), "k&1");
        assert_eq!(config.minimal_life, Some(Duration::from_millis(250)));
        assert_eq!(config.on_unavailable, OnUnavailable::Deny);
        let allowed = read("tgm://h?on-unavailable=allow").unwrap();
        assert_eq!(allowed.on_unavailable, OnUnavailable::Allow);
        assert_eq!(config.borrow_timeout, Duration::from_secs(2));
        assert_eq!(config.borrow_wait, Duration::from_secs(3));
        assert_eq!(config.client_identity, Some((file("c.pem"), file("k.pem"))));
        assert_eq!(read("tgm://h?ca-file=ca.pem").unwrap().ca_file, Some(file("ca.pem")));
    }

    #[test]
    fn the_maximum_is_read_under_both_of_its_names_which_may_stand_together_if_they_agree() {
        for name in ["default-max-request-per-organization", "default-max-request-per-user"] {
            let maximum = |value| read(&format!("tgm://h?{name}={value}"));
            for count in [0, 4] {
                let read = maximum(count.to_string()).unwrap();
                assert_eq!(read.max_sessions_per_organization, Some(count));
            }
            for wrong in ["invalid", "-1", "1.5"] {
                let message = maximum(wrong.to_owned()).unwrap_err().to_string();
                assert!(message.contains(&format!("`{name}={wrong}`")), "{message}");
            }
        }
        for (new, old, most) in [("3", "3", 3), ("3", "", 3), ("", "3", 3), ("0", "00", 0)] {
            let both = format!(
                "tgm://h?default-max-request-per-user={old}&default-max-request-per-organization={new}"
            );
            assert_eq!(read(&both).unwrap().max_sessions_per_organization, Some(most), "{both}");
        }
        let both = "default-max-request-per-organization=1&default-max-request-per-user=2";
        let message = message(&format!("tgm://h?{both}"));
        assert!(message.contains("its old name") && message.contains("differ"), "{message}");
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        for (url, about) in [
            ("tgm://h?request-keep-alive-delay=0", "must be above 0"),
            ("tgm://h?request-keep-alive-delay=20", "has no unit"),
            ("tgm://h?indexer-api-key=a&indexer-api-key-file=b", "one is enough"),
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
    fn an_empty_value_is_the_default_of_every_parameter() {
        let names = [
            "plaintext",
            "insecure",
            "ca-file",
            "client-cert-file",
            "client-key-file",
            "indexer-api-key",
            "indexer-api-key-file",
            "request-keep-alive-delay",
            "default-max-request-per-organization",
            "default-max-request-per-user",
            "minimal-worker-life-duration",
            "borrow-timeout",
            "borrow-wait",
            "on-unavailable",
        ];
        let default = format!("{:?}", read("tgm://h").unwrap());
        let empty = names.map(|name| format!("{name}=")).join("&");
        assert_eq!(format!("{:?}", read(&format!("tgm://h?{empty}")).unwrap()), default);
        let unset = names.map(|name| format!("{name}=$UNSET")).join("&");
        assert_eq!(format!("{:?}", read(&format!("tgm://h?{unset}")).unwrap()), default);
    }

    #[test]
    fn what_is_made_step_by_step_is_what_a_url_makes() {
        let made = TgmConfig::new("[::1]")
            .port(9010)
            .insecure(true)
            .client_identity("c.pem", "k.pem")
            .indexer_api_key_file("key")
            .keep_alive_delay(Duration::from_secs(9))
            .max_sessions_per_organization(3)
            .minimal_life(Duration::from_secs(4))
            .borrow_timeout(Duration::from_secs(2))
            .borrow_wait(Duration::from_secs(1))
            .on_unavailable(OnUnavailable::Allow);
        let read = read(
            "tgm://[::1]:9010?insecure=true&client-cert-file=c.pem&client-key-file=k.pem\
             &indexer-api-key-file=key&request-keep-alive-delay=9s\
             &default-max-request-per-organization=3&minimal-worker-life-duration=4s\
             &borrow-timeout=2s&borrow-wait=1s&on-unavailable=allow",
        );
        let shown =
            |config: &TgmConfig| format!("{:?}", TgmConfig { shown_port: None, ..config.clone() });
        assert_eq!(shown(&made), shown(&read.unwrap()));
        let made = TgmConfig::default().plaintext(true);
        assert_eq!(made.endpoint(), "session.thegraph.market:80");
        let made = TgmConfig::new("h").ca_file("ca.pem").indexer_api_key(Secret::new("s3cret"));
        assert!(made.check().is_ok() && !format!("{made:?}").contains("s3cret"));
        assert!(made.clone().plaintext(true).check().is_err());
        assert!(made.indexer_api_key_file("key").check().is_err());
    }

    #[test]
    fn messages_name_a_place_and_its_files_as_the_url_does() {
        let url = "tgm://x.$HOST:$PORT?ca-file=$CERTS/ca.pem&request-keep-alive-delay=9$UNIT";
        let read = |unit: &str| {
            let dsn = Dsn::parse_with(url, |name| {
                let values = [("HOST", "hidden"), ("PORT", "9010"), ("CERTS", "/hidden")];
                let value = values.iter().find(|(known, _)| *known == name);
                Some(value.map_or(unit, |(_, value)| value).to_owned())
            });
            TgmConfig::from_dsn(&dsn.unwrap())
        };
        let config = read("s").unwrap();
        assert_eq!(config.endpoint(), "x.hidden:9010");
        assert_eq!(config.shown_endpoint(), "x.$HOST:$PORT");
        assert_eq!(config.ca_file.as_ref().unwrap().path(), std::path::Path::new("/hidden/ca.pem"));
        assert_eq!(config.ca_file.as_ref().unwrap().to_string(), "$CERTS/ca.pem");
        assert!(!format!("{config:?}").contains("hidden"), "{config:?}");
        let wrong = read("hidden").unwrap_err();
        assert!(!format!("{wrong} {wrong:?}").contains("hidden"), "{wrong}");
        assert!(wrong.to_string().contains("`9$UNIT` has an unknown unit"), "{wrong}");
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
