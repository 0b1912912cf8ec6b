//! The settings that were given, and their sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use policy::Place;

/// A value as it was written.
#[derive(Clone, PartialEq)]
pub(super) enum Written {
    /// In a flag or a variable.
    Text(String),
    /// In a file.
    Toml(toml::Value),
}

impl Written {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Toml(toml::Value::String(text)) => Some(text),
            Self::Toml(_) => None,
        }
    }
}

/// Repeats the written text; not for secrets.
impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Toml(value) => write!(f, "{value}"),
        }
    }
}

/// The source of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// By a flag.
    Flag,
    /// By a variable.
    Variable,
    /// In a file.
    File(Place),
}

/// The settings that were given, and their sources. `Debug` shows no values: some are secrets.
///
/// ```
/// use tgm_session_server::settings::{Given, Source, find};
/// use tgm_session_server::store::StoreUrl;
/// use tgm_session_server::{Config, Loaded, Policy};
///
/// let file = Loaded::parse("[server]\nmax_streams = 8\nlisten = '[::1]:1'", "policy.toml");
/// let mut given = Given::default();
/// given.set(find("listen").unwrap(), "127.0.0.1:2", Source::Flag).unwrap();
/// let given = given.over(file.unwrap().server);
///
/// let mut config = Config::new(Policy::built_in(), StoreUrl::Memory);
/// given.apply(&mut config).unwrap();
/// assert_eq!((config.listen.port(), config.port.max_streams), (2, 8));
/// ```
#[derive(Clone, Default, PartialEq)]
pub struct Given(BTreeMap<&'static str, (Source, Written)>);

impl Given {
    /// Adds a value that was checked. It replaces the value before.
    pub(super) fn insert(&mut self, name: &'static str, written: Written, source: Source) {
        self.0.insert(name, (source, written));
    }

    /// These settings, and the settings of `below` that are not given here.
    pub fn over(mut self, below: Self) -> Self {
        for (name, given) in below.0 {
            self.0.entry(name).or_insert(given);
        }
        self
    }

    /// The source of the setting `name`.
    pub fn source(&self, name: &str) -> Option<&Source> {
        self.0.get(name).map(|(source, _)| source)
    }

    pub(super) fn written(&self, name: &str) -> Option<&Written> {
        self.0.get(name).map(|(_, written)| written)
    }

    /// The settings whose values differ from those in `before` and that are not given in `above`.
    pub(crate) fn changed_since(&self, before: &Self, above: &Self) -> Self {
        let is_changed = |name: &&'static str| {
            above.written(name).is_none() && self.written(name) != before.written(name)
        };
        let names: Vec<_> = self.0.keys().copied().filter(|name| is_changed(name)).collect();
        Self(names.into_iter().map(|name| (name, self.0[name].clone())).collect())
    }

    /// The names of the settings that differ from those in `other`, or are given only on one side.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let names: BTreeSet<_> = self.0.keys().chain(other.0.keys()).copied().collect();
        names.into_iter().filter(|name| self.written(name) != other.written(name)).collect()
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = self.0.iter().map(|(name, (source, _))| (name, source));
        f.debug_map().entries(sources).finish()
    }
}
