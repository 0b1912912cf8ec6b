//! The types of settings: how a value is read and shown.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use store::StoreUrl;

use crate::config::AdminToken;
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

/// The size of a value, for its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Count(u64),
    Time(Duration),
    Unlimited,
}

/// A value of a [`Config`](crate::Config) that a setting can change.
pub(super) trait Value {
    /// The placeholder for a value in a list of flags.
    fn name(&self) -> &'static str;

    /// Sets the value from what is written, or returns what is wrong with it.
    fn read(&mut self, written: &Written) -> Result<(), String>;

    fn show(&self) -> Shown;

    fn size(&self) -> Size {
        Size::Unlimited
    }

    /// Whether the flag may be given without a value, which means true.
    fn is_switch(&self) -> bool {
        false
    }
}

impl Value for SocketAddr {
    fn name(&self) -> &'static str {
        "ADDR"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        *self = match written.text() {
            Some(text) => match text.parse() {
                Ok(address) => address,
                Err(_) => resolve(text).map_err(|problem| format!("{written} {problem}"))?,
            },
            None => return Err(format!("{written} is none; {ADDRESS}")),
        };
        Ok(())
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

const ADDRESS: &str =
    "write an address and a port, like 127.0.0.1:9010, [::1]:9010 or localhost:9010";

/// Resolves the name of a host: returns its first IPv4 address, or else its first address.
fn resolve(text: &str) -> Result<SocketAddr, String> {
    let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty() && !host.contains(':'));
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(format!("is none; {ADDRESS}"));
    }
    let found = text.to_socket_addrs().map_err(|error| format!("cannot be resolved: {error}"))?;
    let found: Vec<SocketAddr> = found.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.copied().ok_or_else(|| "has no address".to_owned())
}

impl Value for bool {
    fn name(&self) -> &'static str {
        "BOOL"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        *self = match written {
            Written::Toml(toml::Value::Boolean(on)) => *on,
            Written::Text(text) if text == "true" => true,
            Written::Text(text) if text == "false" => false,
            _ => return Err(format!("{written} is not true or false")),
        };
        Ok(())
    }

    fn show(&self) -> Shown {
        Shown::Switch(*self)
    }

    fn is_switch(&self) -> bool {
        true
    }
}

/// Implements [`Value`] for numbers, all of which fit into 64 bits.
macro_rules! number {
    ($($number:ty),+) => {$(
        impl Value for $number {
            fn name(&self) -> &'static str {
                "N"
            }

            fn read(&mut self, written: &Written) -> Result<(), String> {
                let number = match written {
                    Written::Text(text) => text.parse().ok(),
                    Written::Toml(value) => {
                        value.as_integer().and_then(|number| number.try_into().ok())
                    }
                };
                *self = number
                    .ok_or_else(|| format!("{written} is not a whole number without a unit"))?;
                Ok(())
            }

            fn show(&self) -> Shown {
                Shown::Number(*self as u64)
            }

            fn size(&self) -> Size {
                Size::Count(*self as u64)
            }
        }
    )+};
}

number!(u32, u64, usize);

impl Value for Duration {
    fn name(&self) -> &'static str {
        "DURATION"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        let span = written.text().and_then(|text| humantime::parse_duration(text).ok());
        *self = span.ok_or_else(|| {
            format!("{written} is no duration; write one such as 60s, 1m30s or 250ms")
        })?;
        Ok(())
    }

    fn show(&self) -> Shown {
        Shown::Text(humantime::format_duration(*self).to_string())
    }

    fn size(&self) -> Size {
        Size::Time(*self)
    }
}

impl Value for Option<PathBuf> {
    fn name(&self) -> &'static str {
        "FILE"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        let path = written.text().filter(|text| !text.is_empty());
        *self = Some(path.ok_or("write the path of a file")?.into());
        Ok(())
    }

    fn show(&self) -> Shown {
        self.as_ref().map_or(Shown::Nothing, |path| Shown::Text(path.display().to_string()))
    }
}

impl Value for Option<Box<str>> {
    fn name(&self) -> &'static str {
        "NAME"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        let name = written.text().ok_or("write a name")?;
        lease::validate_id("the name", name, true).map_err(|error| error.to_string())?;
        *self = Some(name.into());
        Ok(())
    }

    fn show(&self) -> Shown {
        self.as_ref().map_or(Shown::Nothing, |name| Shown::Text(name.as_ref().to_owned()))
    }
}

impl Value for StoreUrl {
    fn name(&self) -> &'static str {
        "URL"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        let url = written.text().ok_or("write a URL: memory: or file:PATH")?;
        *self = url.parse().map_err(|error: store::Error| error.to_string())?;
        Ok(())
    }

    fn show(&self) -> Shown {
        Shown::Text(self.to_string())
    }
}

impl Value for Option<AdminToken> {
    fn name(&self) -> &'static str {
        "TOKEN"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        let token = written.text().ok_or("write the token as text")?;
        *self = Some(AdminToken::read(token)?);
        Ok(())
    }

    fn show(&self) -> Shown {
        self.as_ref().map_or(Shown::Nothing, |_| Shown::Text(HIDDEN.into()))
    }
}

impl Value for Vec<Origin> {
    fn name(&self) -> &'static str {
        "ORIGINS"
    }

    fn read(&mut self, written: &Written) -> Result<(), String> {
        let parsed = |text: &str| {
            text.parse::<Origin>().map_err(|problem| format!("{text:?} is no origin: {problem}"))
        };
        *self = match written {
            Written::Text(text) => {
                let origins = text.split(',').map(str::trim).filter(|origin| !origin.is_empty());
                origins.map(parsed).collect::<Result<_, _>>()?
            }
            Written::Toml(toml::Value::Array(list)) => {
                let origins = list.iter().map(|origin| origin.as_str().ok_or("write text"));
                origins.map(|origin| parsed(origin?)).collect::<Result<_, _>>()?
            }
            Written::Toml(_) => return Err("write a list: [\"https://app.example.com\"]".into()),
        };
        Ok(())
    }

    fn show(&self) -> Shown {
        Shown::List(self.iter().map(Origin::to_string).collect())
    }
}
