//! One server of a list: its name, its port, and how messages show them.

use std::fmt;

use http::uri::Authority;
use rustls::pki_types::ServerName;

use crate::tls::Unusable;

/// One server of a [`Way`](crate::Way).
pub struct Host {
    /// An IPv6 address has no brackets.
    pub(crate) name: String,
    pub(crate) port: u16,
    alias: Option<Alias>,
}

/// What messages show instead of the real name and address.
struct Alias {
    name: String,
    place: String,
}

/// How messages show a server.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// Its name and port.
    pub(crate) place: String,
    /// Whether its addresses are hidden.
    pub(crate) hides_addresses: bool,
}

impl Host {
    /// Makes the server at `port` of the host `name`. An IPv6 address may have its brackets.
    pub fn new(name: &str, port: u16) -> Self {
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        Self { name, port, alias: None }
    }

    /// Makes messages show `name` and `place` instead of the real name and its addresses.
    #[must_use]
    pub fn shown_as(mut self, name: String, place: String) -> Self {
        self.alias = Some(Alias { name, place });
        self
    }

    /// Returns the name that the certificate of the server must have.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, Unusable> {
        let name = ServerName::try_from(self.name.clone());
        name.map_err(|_| Unusable::Host(self.to_string()))
    }

    /// Returns the authority of requests to this server, if its name can be one.
    pub(crate) fn authority(&self) -> Option<Authority> {
        let Self { name, port, .. } = self;
        let text =
            if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") };
        text.try_into().ok()
    }

    pub(crate) fn shown(&self) -> Shown {
        Shown { place: self.to_string(), hides_addresses: self.alias.is_some() }
    }

    /// Replaces the real name in a text by what messages show.
    pub(crate) fn hide_in(&self, text: String) -> String {
        match &self.alias {
            Some(alias) => text.replace(&self.name, &alias.name),
            None => text,
        }
    }
}

/// Writes `name:port`, or what messages show instead.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port, alias, .. } = self;
        if let Some(alias) = alias {
            return f.write_str(&alias.place);
        }
        if name.contains(':') { write!(f, "[{name}]:{port}") } else { write!(f, "{name}:{port}") }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("place", &self.to_string()).finish_non_exhaustive()
    }
}
