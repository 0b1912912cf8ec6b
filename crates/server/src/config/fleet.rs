//! The settings of a server in a fleet: where the other servers reach it, and TLS between them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use connect::NamedFile;
use rustls::pki_types::ServerName;
use store::Options;

/// The settings of a server in a fleet. Only a store that several servers share needs them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// Where the other servers reach the gRPC port of this one. By default the address of that port,
    /// if it listens on one address only.
    pub advertise: Option<Endpoint>,
    /// How long a renewal of the leadership is valid. It counts for all servers while this one leads.
    /// By default 5 s.
    pub leader_ttl: Duration,
    /// The authorities of the certificates of the servers, as PEM. By default none: the servers connect
    /// to each other without TLS, on loopback only.
    pub ca: Option<PathBuf>,
    /// The certificate that this server shows to the others, and the certificates up to its authority,
    /// as PEM. By default none.
    pub cert: Option<PathBuf>,
    /// The private key of that certificate, as PEM.
    pub key: Option<PathBuf>,
}

impl Default for FleetConfig {
    fn default() -> Self {
        let leader_ttl = Options::default().leader_ttl;
        Self { advertise: None, leader_ttl, ca: None, cert: None, key: None }
    }
}

impl FleetConfig {
    /// Where the other servers reach this one if its gRPC port listens on `listen`; `None` if that is
    /// every address of the machine and nothing else was said.
    pub fn address(&self, listen: SocketAddr) -> Option<Endpoint> {
        self.advertise.clone().or_else(|| {
            let is_one = !listen.ip().is_unspecified();
            is_one.then(|| Endpoint { host: listen.ip().to_string().into(), port: listen.port() })
        })
    }

    /// The files with which this server connects to the others; `None` without TLS. They are read before
    /// each handshake.
    pub(crate) fn tls(&self) -> Option<connect::TlsFiles> {
        let file = |setting, path: &Option<PathBuf>| {
            path.clone().map(|path| NamedFile::of_setting(setting, path))
        };
        let verify = connect::Verify::File(file("fleet_ca", &self.ca)?);
        let files = file("fleet_cert", &self.cert).zip(file("fleet_key", &self.key));
        let identity = files.map(|(certificate, key)| connect::Identity { certificate, key });
        Some(connect::TlsFiles { verify, identity })
    }

    /// The names of the settings that are given.
    pub(super) fn given(&self) -> impl Iterator<Item = &'static str> {
        let Self { advertise, leader_ttl, ca, cert, key } = self;
        let given = [
            ("advertise", advertise.is_some()),
            ("leader_ttl", *leader_ttl != Self::default().leader_ttl),
            ("fleet_ca", ca.is_some()),
            ("fleet_cert", cert.is_some()),
            ("fleet_key", key.is_some()),
        ];
        given.into_iter().filter_map(|(name, is_given)| is_given.then_some(name))
    }
}

/// A host, by name or by address, and a port.
///
/// ```
/// use tgm_session_server::Endpoint;
///
/// let endpoint: Endpoint = "sessions-1.example:9010".parse().unwrap();
/// assert_eq!((endpoint.host(), endpoint.port()), ("sessions-1.example", 9010));
/// let loopback: Endpoint = "[::1]:9010".parse().unwrap();
/// assert_eq!((loopback.host(), loopback.is_loopback()), ("::1", true));
/// assert_eq!(loopback.to_string(), "[::1]:9010");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Without the brackets of an IPv6 address.
    host: Box<str>,
    port: u16,
}

impl Endpoint {
    /// The host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether only this machine reaches it. A name other than `localhost` counts as another machine.
    pub fn is_loopback(&self) -> bool {
        let is_local_name = self.host.eq_ignore_ascii_case("localhost");
        is_local_name || self.host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WRITE: &str = "write a host and a port, like sessions-1.example:9010 or [::1]:9010";
        let (host, port) = text.rsplit_once(':').ok_or(WRITE)?;
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match in_brackets {
            Some(host) if host.parse::<Ipv6Addr>().is_ok() => host,
            None if ServerName::try_from(host).is_ok() && !host.contains(':') => host,
            _ => return Err(WRITE.to_owned()),
        };
        if host.parse().is_ok_and(|address: IpAddr| address.is_unspecified()) {
            return Err(format!("{host} is every address of a machine; {WRITE}"));
        }
        let port = port.parse().ok().filter(|port| *port > 0).ok_or(WRITE)?;
        Ok(Self { host: host.into(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use connect::{Host, Protocol, Way};

    use super::*;

    #[test]
    fn the_files_of_tls_are_named_by_their_settings() {
        let file = |name: &str| Some(PathBuf::from(name));
        let (ca, cert, key) = (file("absent-ca"), file("absent-cert"), file("absent-key"));
        let fleet = FleetConfig { ca, cert, key, ..FleetConfig::default() };
        let way = Way::new(Host::new("localhost", 9010), [], Protocol::Http2);
        let error = way.with_tls(fleet.tls().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("`fleet_ca=absent-ca`: "), "{error}");
    }

    #[test]
    fn an_endpoint_names_one_host_and_a_port() {
        for text in ["a.example:1", "192.0.2.1:9010", "[2001:db8::1]:9010", "localhost:65535"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "",
            ":1",
            "a.example",
            "a.example:",
            "a.example:0",
            "a.example:x",
            "a b:1",
            "::1:9010",
            "[a.example]:1",
            "0.0.0.0:9010",
            "[::]:9010",
            "http://a.example:1",
            "a.example:65536",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_counts_as_loopback() {
        let is_loopback = |text: &str| text.parse::<Endpoint>().unwrap().is_loopback();
        for text in ["127.0.0.1:1", "127.3.2.1:1", "[::1]:1", "localhost:1", "LocalHost:1"] {
            assert!(is_loopback(text), "{text}");
        }
        for text in ["192.0.2.1:1", "[2001:db8::1]:1", "localhost.example:1"] {
            assert!(!is_loopback(text), "{text}");
        }
    }

    #[test]
    fn the_listen_address_is_advertised_unless_another_is_given() {
        let mut fleet = FleetConfig::default();
        let address = |fleet: &FleetConfig, listen: &str| {
            fleet.address(listen.parse().unwrap()).map(|endpoint| endpoint.to_string())
        };
        assert_eq!(address(&fleet, "127.0.0.1:7").as_deref(), Some("127.0.0.1:7"));
        assert_eq!(address(&fleet, "[2001:db8::1]:7").as_deref(), Some("[2001:db8::1]:7"));
        assert_eq!(address(&fleet, "0.0.0.0:7"), None);
        assert_eq!(address(&fleet, "[::]:7"), None);
        fleet.advertise = Some("a.example:8".parse().unwrap());
        assert_eq!(address(&fleet, "0.0.0.0:7").as_deref(), Some("a.example:8"));
    }
}
