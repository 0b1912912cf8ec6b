//! The parameters of `tgm://`, and the connections that they describe.

mod further;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use connect::{
    Connector, Host, Identity, MOST_HOSTS, NamedFile, Protocol, TlsFiles, Unusable, Verify, Way,
};
use http::Uri;

use self::further::Further;
use crate::dsn::{Dsn, Given, invalid};
use crate::error::Error;
use crate::secret::Secret;

/// The host of a URL without one.
const DEFAULT_HOST: &str = "session.thegraph.market";

/// How to reach a session server, and how to use it.
///
/// It is read from a URL, or made step by step. Each step is a parameter of the URL, and the table in
/// the documentation of the crate says what it means.
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
#[must_use = "a configuration does nothing by itself"]
pub struct TgmConfig {
    /// An IPv6 address in its brackets.
    pub(crate) host: Given,
    port: Option<u16>,
    /// How messages write the port, if it comes out of a variable.
    shown_port: Option<String>,
    /// The servers that are used while the one at `host` is gone, in this order.
    further: Vec<Further>,
    pub(crate) plaintext: bool,
    pub(crate) insecure: bool,
    pub(crate) ca_file: Option<NamedFile>,
    pub(crate) client_identity: Option<Identity>,
    pub(crate) indexer_api_key: Option<Secret>,
    pub(crate) indexer_api_key_file: Option<NamedFile>,
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
    /// Borrows are refused, and a session ends when 95 % of a TTL have passed without a keep-alive.
    #[default]
    Deny,
    /// Sessions go on, and borrows are admitted up to
    /// [`TgmConfig::max_sessions_per_organization`], or 10. They are borrowed from the server when it
    /// is back. A session that it refuses ends.
    Allow,
}

impl Default for TgmConfig {
    /// The server of a URL without a host.
    fn default() -> Self {
        Self::new(DEFAULT_HOST)
    }
}

impl TgmConfig {
    /// Makes the configuration for `host`, over TLS. An IPv6 address has its brackets.
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: Given::new(host, None),
            port: None,
            shown_port: None,
            further: Vec::new(),
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
            further: Further::read(&mut p)?,
            plaintext: p.flag("plaintext"),
            insecure: p.flag("insecure"),
            ca_file: p.file("ca-file"),
            client_identity: match (p.file("client-cert-file"), p.file("client-key-file")) {
                (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
                (None, None) => None,
                _ => {
                    return Err(invalid(
                        "gives only one of `client-cert-file` and `client-key-file`; both are needed",
                    ));
                }
            },
            // Blanks are no key, as an empty text is none.
            indexer_api_key: p
                .secret("indexer-api-key")
                .filter(|key| !key.expose().trim().is_empty()),
            indexer_api_key_file: p.file("indexer-api-key-file"),
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

    /// Sets the port. The default is 443, or 80 with plaintext.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self.shown_port = None;
        self
    }

    /// Adds a server that is used while those before it are gone. An IPv6 address has its brackets.
    ///
    /// All servers must count the same leases, as those of a fleet do. TLS and the API key are the same
    /// for all.
    pub fn also(mut self, host: impl Into<String>, port: u16) -> Self {
        self.further.push(Further::new(host.into(), port));
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

    /// Shows the server the certificate in one file, whose key is in another.
    pub fn client_identity(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        let (certificate, key) = (certificate.into().into(), key.into().into());
        self.client_identity = Some(Identity { certificate, key });
        self
    }

    /// Sets the API key of this client.
    pub fn indexer_api_key(mut self, key: Secret) -> Self {
        self.indexer_api_key = Some(key);
        self
    }

    /// Names the file with the API key of this client. It is read again when it changes.
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

    /// Sets the minimal life sent when a session is released, instead of that of the server.
    pub fn minimal_life(mut self, life: Duration) -> Self {
        self.minimal_life = Some(life);
        self
    }

    /// Sets how long a borrow may take, retries included.
    pub fn borrow_timeout(mut self, timeout: Duration) -> Self {
        self.borrow_timeout = timeout;
        self
    }

    /// Sets how long a borrow is tried again while a limit is reached.
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

    /// Returns `host:port` as messages write it: with the names of variables instead of their values.
    pub fn shown_endpoint(&self) -> String {
        match &self.shown_port {
            Some(port) => format!("{}:{port}", self.host),
            None => format!("{}:{}", self.host, self.at_port()),
        }
    }

    /// Returns `host:port` of every server as messages write it, with commas between them.
    pub fn shown_endpoints(&self) -> String {
        let port = self.default_port();
        let further = self.further.iter().map(|further| further.shown_endpoint(port));
        [self.shown_endpoint()].into_iter().chain(further).collect::<Vec<_>>().join(",")
    }

    /// Returns the port, or the default one.
    pub(crate) fn at_port(&self) -> u16 {
        self.port.unwrap_or(self.default_port())
    }

    fn default_port(&self) -> u16 {
        if self.plaintext { 80 } else { 443 }
    }

    /// Refuses values that contradict each other.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let has_files = self.ca_file.is_some() || self.client_identity.is_some();
        let has_two_keys = self.indexer_api_key.is_some() && self.indexer_api_key_file.is_some();
        let problems = [
            (
                self.keep_alive_delay.is_zero(),
                "`request-keep-alive-delay` is 0, and it must be above 0",
            ),
            (self.borrow_timeout.is_zero(), "`borrow-timeout` is 0, and it must be above 0"),
            (self.plaintext && has_files, "`plaintext=true` has no use for certificate files"),
            (self.insecure && self.ca_file.is_some(), "`insecure=true` has no use for `ca-file`"),
            (has_two_keys, "`indexer-api-key` and `indexer-api-key-file` are given; one is enough"),
        ];
        match problems.into_iter().find(|(is_there, _)| *is_there) {
            Some((_, problem)) => Err(Error::invalid(problem)),
            None => self.check_further(),
        }
    }

    /// Refuses further servers that there cannot be, that are listed twice, or that are too many.
    fn check_further(&self) -> Result<(), Error> {
        let port = self.default_port();
        let mut listed = vec![self.endpoint().to_ascii_lowercase()];
        for further in &self.further {
            let shown = || further.shown_endpoint(port);
            further.check(port).map_err(|problem| {
                Error::invalid(format!("`also` lists `{}`, which {problem}", shown()))
            })?;
            let endpoint = further.endpoint(port).to_ascii_lowercase();
            if listed.contains(&endpoint) {
                let problem = "is given already; each server is listed once";
                return Err(Error::invalid(format!("`also` lists `{}`, which {problem}", shown())));
            }
            listed.push(endpoint);
        }
        if listed.len() > MOST_HOSTS {
            let most = MOST_HOSTS - 1;
            return Err(Error::invalid(format!("`also` lists more than {most} servers")));
        }
        Ok(())
    }

    /// Returns what makes connections to the server. Nothing is sent before the first call.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the host, or a certificate file, cannot be used.
    pub(crate) fn connector(&self) -> Result<Connector, Error> {
        self.origin()?;
        let mut host = Host::new(self.host.text(), self.at_port());
        if self.shown_endpoint() != self.endpoint() {
            host = host.shown_as(self.host.to_string(), self.shown_endpoint());
        }
        let further = self.further.iter().map(|further| further.to_host(self.default_port()));
        let way = Way::new(host, further, Protocol::Http2);
        if self.plaintext {
            return Ok(Connector::Way(Arc::new(way)));
        }
        let verify = match &self.ca_file {
            _ if self.insecure => Verify::Nothing,
            Some(file) => Verify::File(file.clone()),
            None => Verify::System,
        };
        let files = TlsFiles { verify, identity: self.client_identity.clone() };
        let way = way.with_tls(files).map_err(|error| {
            let (about, help) = match &error {
                Unusable::NoAuthorities(_) => ("", "; name one by `ca-file`"),
                Unusable::Host(place) if *place != self.shown_endpoint() => ("`also`: ", ""),
                _ => ("", ""),
            };
            Error::invalid(format!("{about}{error}{help}"))
        })?;
        if self.insecure {
            tracing::warn!(
                server = self.shown_endpoints(),
                "insecure=true: the certificate of the session server is not checked"
            );
        }
        Ok(Connector::Way(Arc::new(way)))
    }

    /// Returns the scheme, host and port of requests.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when the host cannot be used.
    pub(crate) fn origin(&self) -> Result<Uri, Error> {
        let scheme = if self.plaintext { "http" } else { "https" };
        format!("{scheme}://{}", self.endpoint()).parse().map_err(|_| {
            Error::invalid(format!("`{}` is not a place on the network", self.shown_endpoint()))
        })
    }
}

#[cfg(test)]
mod tests;
