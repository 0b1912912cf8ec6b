//! The types that a policy file is deserialized into.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use lease::Period;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use crate::digests::Digest;

/// A whole file. Each name keeps its place for error messages.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) server: Server,
    pub(crate) services: Named<Service>,
    pub(crate) plans: Named<Plan>,
    pub(crate) organizations: Named<Organization>,
    pub(crate) api_keys: Named<ApiKey>,
    pub(crate) indexers: Vec<Indexer>,
}

/// The `[server]` section, which the server reads.
pub(crate) type Server = BTreeMap<Spanned<String>, Spanned<toml::Value>>;

/// A table of tables, by their names and the places of the names.
pub(crate) type Named<T> = BTreeMap<Spanned<String>, T>;

/// Limits by the name of the service.
pub(crate) type ServiceLimits = BTreeMap<Spanned<String>, Limit>;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Service {
    pub(crate) max_per_organization: Option<Limit>,
    pub(crate) max_per_api_key: Option<Limit>,
    pub(crate) max_total: Option<Limit>,
    pub(crate) ttl: Option<Spanned<Span>>,
    pub(crate) minimal_life: Option<Spanned<Span>>,
    pub(crate) observe: bool,
    /// Only the entry `default` has it.
    pub(crate) max_unnamed_services: Option<Spanned<Limit>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Plan {
    pub(crate) limits: ServiceLimits,
    pub(crate) budgets: Named<Budget>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Budget {
    pub(crate) amount: Spanned<f64>,
    #[serde(with = "Per")]
    pub(crate) per: Period,
}

#[derive(Deserialize)]
#[serde(remote = "Period", rename_all = "lowercase")]
enum Per {
    Day,
    Month,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Organization {
    pub(crate) plan: Option<Spanned<String>>,
    pub(crate) limits: ServiceLimits,
    pub(crate) disabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ApiKey {
    pub(crate) limits: ServiceLimits,
    pub(crate) disabled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Indexer {
    pub(crate) name: Spanned<String>,
    pub(crate) key_sha256: Option<Digests>,
    pub(crate) key_sha256_file: Option<Spanned<String>>,
    pub(crate) services: Option<Vec<Spanned<String>>>,
}

/// A limit: a whole number, 0 or more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit(pub(crate) u64);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, 0 (nobody) or more; leave it out for no limit")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Limit, E> {
                u64::try_from(value)
                    .map(Limit)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Limit, E> {
                Ok(Limit(value))
            }
        }
        deserializer.deserialize_i64(Number)
    }
}

/// A duration such as `60s` or `1m30s`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span(pub(crate) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"60s\", \"1m30s\" or \"250ms\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                humantime::parse_duration(text)
                    .map(Span)
                    .map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// One digest of a key, or several while keys are rotated.
#[derive(Debug)]
pub(crate) struct Digests(pub(crate) Vec<Digest>);

impl<'de> Deserialize<'de> for Digests {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Digests;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the SHA-256 of a key as 64 hex digits, or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Digests, E> {
                read_digest(text).map(|digest| Digests(vec![digest]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Digests, A::Error> {
                let mut digests = Vec::new();
                while let Some(digest) = list.next_element()? {
                    digests.push(digest);
                }
                if digests.is_empty() {
                    return Err(de::Error::invalid_length(0, &self));
                }
                Ok(Digests(digests))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

fn read_digest<E: de::Error>(text: &str) -> Result<Digest, E> {
    Digest::read(text).map_err(|problem| E::custom(format!("key_sha256: {problem}")))
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Hex;
        impl Visitor<'_> for Hex {
            type Value = Digest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the SHA-256 of a key as 64 hex digits")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Digest, E> {
                read_digest(text)
            }
        }
        deserializer.deserialize_str(Hex)
    }
}
