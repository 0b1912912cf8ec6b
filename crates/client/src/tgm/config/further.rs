//! The further servers of a pool, which the parameter `also` lists.

use std::fmt;

use connect::Host;
use url::Url;

use crate::dsn::{Given, Parameters, invalid};
use crate::error::Error;

/// A further server: a host, an IPv6 address in its brackets, and perhaps a port.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Further {
    host: String,
    port: Option<u16>,
    /// How messages write it, if it comes out of a variable.
    shown: Option<String>,
}

impl Further {
    /// Makes the server at `port` of `host`. [`Further::check`] says whether there can be one.
    pub(super) fn new(host: String, port: u16) -> Self {
        Self { host, port: Some(port), shown: None }
    }

    /// Reads the parameter `also`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] names the parameter and the first invalid entry.
    pub(super) fn read(p: &mut Parameters<'_>) -> Result<Vec<Self>, Error> {
        let Some(list) = p.given("also") else { return Ok(Vec::new()) };
        if list.text().contains('@') {
            // A password may be in it.
            return Err(invalid(
                "names a user in `also`, which lists servers as HOST:PORT; a key goes into the \
                 parameter `indexer-api-key`",
            ));
        }
        let wrong = |shown: Given, problem| {
            p.wrong(
                "also",
                format_args!("lists `{shown}`, which {problem}; write HOST:PORT,HOST:PORT"),
            )
        };
        let read = |entry: Given| match Self::parse(entry.text()) {
            Ok((host, port)) => Ok(Self { host, port, shown: entry.replaced() }),
            Err(problem) => Err(wrong(entry, problem)),
        };
        entries(&list).map(read).collect()
    }

    /// Splits `HOST:PORT`, or says what is wrong with it.
    fn parse(text: &str) -> Result<(String, Option<u16>), &'static str> {
        if text.is_empty() {
            return Err("is no server");
        }
        if text.contains(['/', '?', '#', '\\']) {
            return Err("has a scheme or a path");
        }
        let colon = text.rfind(':').filter(|colon| !text[*colon..].contains(']'));
        let (host, port) = colon.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])));
        if host.contains(':') && !host.starts_with('[') {
            return Err("is an IPv6 address without its brackets, or has more than one port");
        }
        let port = match port.map(str::parse) {
            None => None,
            Some(Ok(0)) | Some(Err(_)) => {
                return Err("has no port between 1 and 65535 after the colon");
            }
            Some(Ok(port)) => Some(port),
        };
        // As for the host of the URL.
        let read = Url::parse(&format!("tgm://{host}")).ok();
        let name = read.as_ref().and_then(Url::host_str).filter(|name| !name.is_empty());
        let name = name.filter(|name| name.parse::<http::uri::Authority>().is_ok());
        Ok((name.ok_or("has no valid host name")?.to_owned(), port))
    }

    /// Returns `host:port`.
    pub(super) fn endpoint(&self, default_port: u16) -> String {
        format!("{}:{}", self.host, self.port.unwrap_or(default_port))
    }

    /// Returns `host:port` as messages write it.
    pub(super) fn shown_endpoint(&self, default_port: u16) -> String {
        self.shown.clone().unwrap_or_else(|| self.endpoint(default_port))
    }

    /// Returns the server for a connector.
    pub(super) fn to_host(&self, default_port: u16) -> Host {
        let host = Host::new(&self.host, self.port.unwrap_or(default_port));
        match &self.shown {
            Some(shown) => host.shown_as(shown.clone(), shown.clone()),
            None => host,
        }
    }

    /// Says what is wrong with a server that was not read from a URL.
    pub(super) fn check(&self, default_port: u16) -> Result<(), &'static str> {
        if self.host.contains(['@', ',']) {
            return Err("is not one host name");
        }
        Self::parse(&self.endpoint(default_port)).map(drop)
    }
}

/// Writes the server as messages do.
impl fmt::Debug for Further {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        self.shown.clone().unwrap_or_else(|| format!("{}{port}", self.host)).fmt(f)
    }
}

/// Splits a list at its commas. An entry that comes out of a variable is written as the variable. If a
/// variable holds several entries, each of them is written as the whole list.
fn entries(list: &Given) -> impl Iterator<Item = Given> {
    let texts: Vec<_> = list.text().split(',').collect();
    let shown = list.replaced();
    let parts: Vec<_> = shown.iter().flat_map(|shown| shown.split(',')).collect();
    let parts: Vec<_> = if parts.len() == texts.len() {
        parts.iter().map(|part| Some((*part).to_owned())).collect()
    } else {
        vec![shown.clone(); texts.len()]
    };
    let given = texts.into_iter().zip(parts);
    let given = given.map(|(text, shown)| Given::new(text, shown.filter(|shown| shown != text)));
    given.collect::<Vec<_>>().into_iter()
}
