//! The types of settings: how a value is read and shown.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use store::StoreUrl;

use crate::config::AdminToken;
use crate::config::fleet::Endpoint;
use crate::config::given::Written;
use crate::config::origin::Origin;

/// A value as it is shown. Secrets are masked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Shown {
    /// No value.
    Nothing,
    /// Text; a secret is `***`.
    Text(String),
    /// A number.
    Number(u64),
    /// True or false.
    Switch(bool),
    /// Several texts.
    List(Vec<String>),
}

/// Writes the value in the syntax of a policy file.
impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("none"),
            Self::Text(text) if text == HIDDEN => f.write_str(HIDDEN),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Switch(on) => write!(f, "{on}"),
            Self::List(list) => write!(f, "{list:?}"),
        }
    }
}

/// The mask of a secret.
const HIDDEN: &str = "***";

/// A bound of a value.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) enum Bound {
    Count(u64),
    Time(Duration),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Time(time) => write!(f, "{}", humantime::format_duration(*time)),
        }
    }
}

/// A value in a [`Config`](crate::Config) that a setting can change, by the kind of the value.
pub(super) enum Slot<'c> {
    Address(&'c mut SocketAddr),
    Switch(&'c mut bool),
    Integer32(&'c mut u32),
    Integer64(&'c mut u64),
    Size(&'c mut usize),
    Time(&'c mut Duration),
    File(&'c mut Option<PathBuf>),
    Name(&'c mut Option<Box<str>>),
    Store(&'c mut StoreUrl),
    Endpoint(&'c mut Option<Endpoint>),
    Token(&'c mut Option<AdminToken>),
    Origins(&'c mut Vec<Origin>),
}

impl Slot<'_> {
    /// The placeholder for a value in a list of flags.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Address(_) => "ADDR",
            Self::Switch(_) => "BOOL",
            Self::Integer32(_) | Self::Integer64(_) | Self::Size(_) => "N",
            Self::Time(_) => "DURATION",
            Self::File(_) => "FILE",
            Self::Name(_) => "NAME",
            Self::Store(_) => "URL",
            Self::Endpoint(_) => "HOST:PORT",
            Self::Token(_) => "TOKEN",
            Self::Origins(_) => "ORIGINS",
        }
    }

    /// Sets the value from what is written, or returns what is wrong with it.
    pub(super) fn read(&mut self, written: &Written) -> Result<(), String> {
        match self {
            Self::Address(address) => **address = read_address(written)?,
            Self::Switch(on) => **on = read_switch(written)?,
            Self::Integer32(number) => **number = read_number(written)?,
            Self::Integer64(number) => **number = read_number(written)?,
            Self::Size(number) => **number = read_number(written)?,
            Self::Time(time) => **time = read_time(written)?,
            Self::File(path) => {
                let text = written.text().filter(|text| !text.is_empty());
                **path = Some(text.ok_or("write the path of a file")?.into());
            }
            Self::Name(name) => {
                let text = written.text().ok_or("write a name")?;
                lease::validate_id("the name", text, true).map_err(|error| error.to_string())?;
                **name = Some(text.into());
            }
            Self::Store(url) => {
                let text = written
                    .text()
                    .ok_or("write a URL: memory:, file:PATH, postgres://… or etcd://…")?;
                **url = text.parse().map_err(|error: store::Error| error.to_string())?;
            }
            Self::Endpoint(endpoint) => {
                let text = written.text().ok_or("write a host and a port")?;
                **endpoint = Some(text.parse()?);
            }
            Self::Token(token) => {
                let text = written.text().ok_or("write the token as text")?;
                **token = Some(AdminToken::read(text)?);
            }
            Self::Origins(origins) => **origins = read_origins(written)?,
        }
        Ok(())
    }

    pub(super) fn show(&self) -> Shown {
        let shown = |text: Option<String>| text.map_or(Shown::Nothing, Shown::Text);
        match self {
            Self::Address(address) => Shown::Text(address.to_string()),
            Self::Switch(on) => Shown::Switch(**on),
            Self::Integer32(number) => Shown::Number(u64::from(**number)),
            Self::Integer64(number) => Shown::Number(**number),
            Self::Size(number) => Shown::Number(**number as u64),
            Self::Time(time) => Shown::Text(humantime::format_duration(**time).to_string()),
            Self::File(path) => shown(path.as_ref().map(|path| path.display().to_string())),
            Self::Name(name) => shown(name.as_deref().map(str::to_owned)),
            Self::Store(url) => Shown::Text(url.to_string()),
            Self::Endpoint(endpoint) => shown(endpoint.as_ref().map(Endpoint::to_string)),
            Self::Token(token) => shown(token.as_ref().map(|_| HIDDEN.to_owned())),
            Self::Origins(origins) => Shown::List(origins.iter().map(Origin::to_string).collect()),
        }
    }

    /// The value as its bounds have it; `None` for a kind without bounds.
    pub(super) fn bounded(&self) -> Option<Bound> {
        match (self, self.show()) {
            (Self::Time(time), _) => Some(Bound::Time(**time)),
            (_, Shown::Number(number)) => Some(Bound::Count(number)),
            _ => None,
        }
    }
}

const ADDRESS: &str =
    "write an address and a port, like 127.0.0.1:9010, [::1]:9010 or localhost:9010";

fn read_address(written: &Written) -> Result<SocketAddr, String> {
    let text = written.text().ok_or_else(|| format!("{written} is no address; {ADDRESS}"))?;
    text.parse()
        .or_else(|_| resolve(text))
        .map_err(|problem: String| format!("{written} {problem}"))
}

/// Resolves the name of a host: returns its first IPv4 address, or else its first address.
fn resolve(text: &str) -> Result<SocketAddr, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(':'));
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(format!("is no address; {ADDRESS}"));
    }
    let found = text.to_socket_addrs().map_err(|error| format!("cannot be resolved: {error}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| "has no address".to_owned())
}

fn read_switch(written: &Written) -> Result<bool, String> {
    match written {
        Written::Toml(toml::Value::Boolean(on)) => Ok(*on),
        Written::Text(text) if text == "true" => Ok(true),
        Written::Text(text) if text == "false" => Ok(false),
        _ => Err(format!("{written} is not true or false")),
    }
}

fn read_number<N: FromStr + TryFrom<i64>>(written: &Written) -> Result<N, String> {
    let number = match written {
        Written::Text(text) => text.parse().ok(),
        Written::Toml(value) => value.as_integer().and_then(|number| number.try_into().ok()),
    };
    number.ok_or_else(|| format!("{written} is not a whole number without a unit"))
}

fn read_time(written: &Written) -> Result<Duration, String> {
    let time = written.text().and_then(|text| humantime::parse_duration(text).ok());
    time.ok_or_else(|| format!("{written} is no duration; write one such as 60s, 1m30s or 250ms"))
}

fn read_origins(written: &Written) -> Result<Vec<Origin>, String> {
    let origin = |text: &str| {
        text.parse::<Origin>().map_err(|problem| format!("{text:?} is no origin: {problem}"))
    };
    match written {
        Written::Text(text) => {
            let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
            origins.map(origin).collect()
        }
        Written::Toml(toml::Value::Array(list)) => {
            list.iter().map(|value| origin(value.as_str().ok_or("write text")?)).collect()
        }
        Written::Toml(_) => Err("write a list: [\"https://app.example.com\"]".into()),
    }
}
