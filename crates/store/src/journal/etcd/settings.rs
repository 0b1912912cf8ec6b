//! The URL of a fleet on etcd, and what the environment adds to it, as etcdctl reads its variables.

use std::fmt;

use connect::{Host, Identity, MOST_HOSTS, NamedFile, Protocol, TlsFiles, Verify, Way};
use http::uri::Authority;

/// The prefix of the keys where the URL names none.
const PREFIX: &str = "tgm_session";

/// The port where the URL names none.
const PORT: u16 = 2379;

/// Where an etcd is, and how it is reached. `Debug` shows no password.
#[derive(Clone)]
pub(crate) struct Settings {
    /// The members of the cluster. The first is tried first.
    pub(super) hosts: Vec<(String, u16)>,
    tls: Option<TlsFiles>,
    /// The name and the password.
    pub(super) user: Option<(String, String)>,
    /// With which all keys begin. It ends with `/`.
    pub(super) prefix: Vec<u8>,
    /// The place, for messages.
    pub(crate) shown: String,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("url", &self.shown).finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads `url`, and what the environment adds to it.
    ///
    /// # Errors
    ///
    /// What is wrong with the URL. The text has no value of the URL, because it could be a secret.
    pub(crate) fn parse(
        url: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let place = url.strip_prefix("etcd://").ok_or("it does not begin with etcd://")?;
        if place.contains(['?', '#']) {
            return Err("it takes no parameters".to_owned());
        }
        if place.contains('@') {
            return Err("name and password come from ETCDCTL_USER and ETCDCTL_PASSWORD".to_owned());
        }
        let (places, prefix) = place.split_once('/').unwrap_or((place, ""));
        let hosts = places.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
        if hosts.len() > MOST_HOSTS {
            return Err(format!("it names more than {MOST_HOSTS} hosts"));
        }
        let user = variable("ETCDCTL_USER").map(|user| match user.split_once(':') {
            Some((name, password)) => (name.to_owned(), password.to_owned()),
            None => (user, variable("ETCDCTL_PASSWORD").unwrap_or_default()),
        });
        let file = |name| Some(NamedFile::of_setting(name, variable(name)?.into()));
        let identity = match (file("ETCDCTL_CERT"), file("ETCDCTL_KEY")) {
            (Some(certificate), Some(key)) => Some(Identity { certificate, key }),
            (None, None) => None,
            _ => return Err("ETCDCTL_CERT and ETCDCTL_KEY belong together".to_owned()),
        };
        let authority = file("ETCDCTL_CACERT");
        let is_plain = variable("ETCDCTL_INSECURE_TRANSPORT").is_none_or(|value| value != "false");
        let is_encrypted = authority.is_some() || identity.is_some() || !is_plain;
        let verify = authority.map_or(Verify::System, Verify::File);
        let tls = is_encrypted.then_some(TlsFiles { verify, identity });
        let prefix = match prefix.trim_end_matches('/') {
            "" => PREFIX,
            prefix => prefix,
        };
        let shown = format!("etcd://{places}/{prefix}");
        let prefix = format!("{prefix}/").into();
        let settings = Self { hosts, tls, user, prefix, shown };
        settings.way().map(|_| settings)
    }

    /// The way to the cluster.
    pub(super) fn way(&self) -> Result<Way, String> {
        let mut hosts = self.hosts.iter().map(|(name, port)| Host::new(name, *port));
        let first = hosts.next().ok_or("it names no host")?;
        let way = Way::new(first, hosts, Protocol::Http2);
        match &self.tls {
            Some(files) => way.with_tls(files.clone()).map_err(|error| error.to_string()),
            None => Ok(way),
        }
    }

    /// The URI of a call to the first member.
    pub(super) fn uri(&self, method: &str) -> String {
        let (name, port) = &self.hosts[0];
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{name}:{port}/etcdserverpb.{method}")
    }
}

fn host(place: &str) -> Result<(String, u16), String> {
    let place: Authority = place.parse().map_err(|_| "a host is missing or invalid")?;
    let has_port = place.as_str().len() > place.host().len();
    match place.port_u16() {
        None if has_port => Err("a port is no number".to_owned()),
        port => Ok((place.host().to_owned(), port.unwrap_or(PORT))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_the_members_and_the_prefix() {
        let url = "etcd://10.0.0.1:2379,10.0.0.2,[::1]:5/the fleet/";
        let mut settings = Settings::parse(url, &|_| None).unwrap();
        assert_eq!(settings.shown, "etcd://10.0.0.1:2379,10.0.0.2,[::1]:5/the fleet");
        assert_eq!(settings.prefix, b"the fleet/");
        for authority in ["10.0.0.1:2379", "10.0.0.2:2379", "[::1]:5"] {
            let uri = format!("http://{authority}/etcdserverpb.KV/Txn");
            assert_eq!(settings.uri("KV/Txn"), uri);
            settings.hosts.rotate_left(1);
        }
        let bare = Settings::parse("etcd://h", &|_| None).unwrap();
        assert_eq!((&*bare.prefix, bare.user), (&b"tgm_session/"[..], None));
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_values() {
        for (url, problem) in [
            ("etcd:///x", "a host is missing"),
            ("etcd://h,/x", "a host is missing"),
            ("etcd://h:secret/x", "a port is no number"),
            ("etcd://h/x?secret=1", "no parameters"),
            ("etcd://u:secret@h/x", "from ETCDCTL_USER and ETCDCTL_PASSWORD"),
        ] {
            let error = Settings::parse(url, &|_| None).unwrap_err();
            assert!(error.contains(problem) && !error.contains("secret"), "{url}: {error}");
        }
        let many = format!("etcd://h{}", ",h".repeat(MOST_HOSTS));
        assert!(Settings::parse(&many, &|_| None).unwrap_err().contains("more than 16 hosts"));
    }

    #[test]
    fn the_variables_of_etcdctl_count() {
        let parse = |variables: &[(&str, &str)]| {
            Settings::parse("etcd://h", &|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let pair = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(parse(&[("ETCDCTL_USER", "a:b:c")]).unwrap().user, pair("a", "b:c"));
        let apart = parse(&[("ETCDCTL_USER", "a"), ("ETCDCTL_PASSWORD", "a secret")]).unwrap();
        assert_eq!(apart.user, pair("a", "a secret"));
        assert!(!format!("{apart:?}").contains("secret"));
        assert!(parse(&[("ETCDCTL_CERT", "/none")]).unwrap_err().contains("belong together"));
        let refused = parse(&[("ETCDCTL_CACERT", "/none")]).unwrap_err();
        assert!(refused.starts_with("`ETCDCTL_CACERT=/none`: No such file"), "{refused}");
        let refused = parse(&[("ETCDCTL_CERT", "/none"), ("ETCDCTL_KEY", "/no")]).unwrap_err();
        assert!(refused.starts_with("`ETCDCTL_CERT=/none`: No such file"), "{refused}");
        let uri = |variables| parse(variables).unwrap().uri("KV/Txn");
        assert_eq!(uri(&[]), "http://h:2379/etcdserverpb.KV/Txn");
        let encrypted = [("ETCDCTL_INSECURE_TRANSPORT", "false")];
        assert_eq!(uri(&encrypted), "https://h:2379/etcdserverpb.KV/Txn");
    }
}
