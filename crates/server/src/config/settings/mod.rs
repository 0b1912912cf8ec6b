//! The settings of a server. Each can be given by a flag, a variable or a file.
//!
//! One table lists all settings. Flags and their help, variables, the keys of `[server]` and what is
//! printed come from this table, so that none of them can miss a setting.

mod table;
mod value;

use std::fmt;
use std::time::Duration;

use policy::{Place, Policy, SettingError, nearest};
use store::StoreUrl;

use super::given::Written;
pub use super::given::{Given, Source};
use super::limits::ADMIN_CONNECTIONS;
use super::start::Config;
use crate::error::Error;
pub use value::Shown;
use value::{Bound, Slot};

/// One setting.
pub struct Setting {
    name: &'static str,
    group: &'static str,
    about: &'static str,
    default: Option<&'static str>,
    /// The least and the highest value.
    bounds: Option<(Bound, Bound)>,
    slot: fn(&mut Config) -> Slot<'_>,
}

/// All settings, in the order in which they are shown.
///
/// ```
/// let names: Vec<_> = tgm_session_server::settings::all().iter().map(|s| s.name()).collect();
/// assert!(names.contains(&"listen") && names.contains(&"idle_timeout"));
/// ```
pub fn all() -> &'static [Setting] {
    table::SETTINGS
}

/// Finds the setting `name`. Its words may be joined by underscores or by dashes.
pub fn find(name: &str) -> Option<&'static Setting> {
    let name = name.replace('-', "_");
    all().iter().find(|setting| setting.name == name)
}

impl Setting {
    const fn new(
        name: &'static str,
        group: &'static str,
        slot: fn(&mut Config) -> Slot<'_>,
    ) -> Self {
        Self { name, group, about: "", default: None, bounds: None, slot }
    }

    /// Sets the description.
    const fn described(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    /// Sets a description of the default, if it is not a value.
    const fn by_default(mut self, words: &'static str) -> Self {
        self.default = Some(words);
        self
    }

    const fn counted(mut self, least: u64, most: u64) -> Self {
        self.bounds = Some((Bound::Count(least), Bound::Count(most)));
        self
    }

    const fn timed(mut self, shortest: Duration, longest: Duration) -> Self {
        self.bounds = Some((Bound::Time(shortest), Bound::Time(longest)));
        self
    }

    /// Its name in a file.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The heading of its group.
    pub const fn group(&self) -> &'static str {
        self.group
    }

    /// Its description.
    pub const fn about(&self) -> &'static str {
        self.about
    }

    /// Its flag, without the leading dashes.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// Its variable.
    pub fn variable(&self) -> String {
        format!("TGM_SESSION_{}", self.name.to_uppercase())
    }

    /// The placeholder for its value in a list of flags, such as `ADDR`.
    pub fn value_name(&self) -> &'static str {
        (self.slot)(&mut scratch()).name()
    }

    /// Whether its flag may be given without a value, which means true.
    pub fn is_switch(&self) -> bool {
        matches!(self.show(&mut scratch()), Shown::Switch(_))
    }

    /// The description of its default.
    pub fn default_words(&self) -> String {
        match self.default {
            Some(words) => words.to_owned(),
            None => match self.show(&mut scratch()) {
                Shown::Text(text) => text,
                Shown::List(list) if list.is_empty() => Shown::Nothing.to_string(),
                shown => shown.to_string(),
            },
        }
    }

    /// Its value in `config`. Secrets are masked. `config` is not changed.
    pub fn show(&self, config: &mut Config) -> Shown {
        (self.slot)(config).show()
    }

    fn apply(&self, config: &mut Config, written: &Written) -> Result<(), String> {
        let mut value = (self.slot)(config);
        value.read(written)?;
        self.check(&value)
    }

    fn check(&self, value: &Slot<'_>) -> Result<(), String> {
        match (self.bounds, value.bounded()) {
            (Some((least, most)), Some(value)) if value < least || value > most => {
                Err(format!("it has to be between {least} and {most}"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Setting").field(&self.name).finish()
    }
}

/// A configuration to check a value in, or to look up a default.
fn scratch() -> Config {
    Config::new(Policy::default(), StoreUrl::Memory)
}

/// Returns an error for each value of `config` that is out of bounds.
pub(crate) fn check(config: &mut Config) -> Vec<Error> {
    let wrong = all().iter().filter_map(|setting| {
        let problem = setting.check(&(setting.slot)(config)).err()?;
        Some(Error::Setting { name: setting.name, problem })
    });
    wrong.collect()
}

/// The most memory of one lease without its ids, in bytes: its slot in the table, a scope of its own of
/// each kind, and its borrow id.
const LEASE_BYTES: u64 = 560;

/// The most memory of a byte of an id, in hundredths of a byte: the allocator rounds sizes up.
const ID_BYTE_PERCENT: u64 = 125;

/// The most bytes of memory of all leases under these two settings.
///
/// A caller can reach it with different ids for each lease. Leases of few organizations and without
/// borrow ids take half of it or less.
///
/// ```
/// use tgm_session_server::settings::worst_memory;
///
/// assert!(worst_memory(2_000_000, 512 << 20) < 2 << 30);
/// ```
pub const fn worst_memory(max_leases: u64, max_id_bytes: u64) -> u64 {
    let ids = (max_id_bytes / 100).saturating_mul(ID_BYTE_PERCENT);
    max_leases.saturating_mul(LEASE_BYTES).saturating_add(ids)
}

/// The open files of each thread that serves gRPC: its runtime and its listening socket.
const FILES_PER_THREAD: u64 = 8;

/// The open files besides connections and threads: the store, both ports, the main runtime, standard
/// streams, watched files, and a reserve.
const FILES_BESIDE: u64 = 64;

/// The most open files of a server with `config`, including connections.
///
/// ```
/// use tgm_session_server::settings::most_open_files;
/// use tgm_session_server::store::StoreUrl;
/// use tgm_session_server::{Config, Policy};
///
/// let config = Config::new(Policy::built_in(), StoreUrl::Memory);
/// assert!(most_open_files(&config) > u64::from(config.max_connections));
/// ```
pub fn most_open_files(config: &Config) -> u64 {
    u64::from(config.max_connections)
        + ADMIN_CONNECTIONS as u64
        + config.threads as u64 * FILES_PER_THREAD
        + FILES_BESIDE
}

impl Given {
    /// Sets the value of `setting` from a flag or a variable.
    ///
    /// # Errors
    ///
    /// What is wrong with the value. Secrets are not repeated.
    pub fn set(
        &mut self,
        setting: &'static Setting,
        text: &str,
        source: Source,
    ) -> Result<(), String> {
        self.try_value(setting, Written::Text(text.to_owned()), source)
    }

    /// Sets the value of the key `name` of the `[server]` section of a file.
    pub(crate) fn set_in_file(
        &mut self,
        name: &str,
        value: toml::Value,
        place: Place,
    ) -> Result<(), SettingError> {
        let Some(setting) = find(name) else {
            let known: Vec<_> = all().iter().map(Setting::name).collect();
            let (nearest, known) = (nearest(name, known.iter().copied()), known.join(", "));
            return Err(SettingError::Unknown(format!(
                "there is no setting {name:?}{nearest}; the settings are: {known}"
            )));
        };
        let invalid = |problem| SettingError::Invalid(problem);
        if self.written(setting.name).is_some() {
            return Err(invalid(format!("{} is given twice", setting.name)));
        }
        let taken = self.try_value(setting, Written::Toml(value), Source::File(place));
        taken.map_err(|problem| invalid(format!("{}: {problem}", setting.name)))
    }

    fn try_value(
        &mut self,
        setting: &'static Setting,
        written: Written,
        source: Source,
    ) -> Result<(), String> {
        setting.apply(&mut scratch(), &written)?;
        self.insert(setting.name, written, source);
        Ok(())
    }

    /// Writes the values into `config`; other values stay as they are.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`]. It cannot happen, because all values were checked when they were given.
    pub fn apply(&self, config: &mut Config) -> Result<(), Error> {
        for setting in all() {
            if let Some(written) = self.written(setting.name) {
                let applied = setting.apply(config, written);
                applied.map_err(|problem| Error::Setting { name: setting.name, problem })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
