//! What a policy file needs from outside: files of keys, and the settings of a server.

use std::io;
use std::path::Path;

use crate::error::Place;

/// Reads the files that a policy file names, and receives the settings of its `[server]` section.
pub trait Outside {
    /// Reads a whole file.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    fn read(&mut self, path: &Path) -> io::Result<Vec<u8>>;

    /// Receives the setting `name` of the `[server]` section.
    ///
    /// # Errors
    ///
    /// There is no such setting, or its value is invalid.
    fn set(&mut self, name: &str, value: toml::Value, place: Place) -> Result<(), SettingError>;
}

/// Why a setting is refused, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingError {
    /// There is no setting of that name.
    Unknown(String),
    /// Its value is invalid.
    Invalid(String),
}

/// For a policy that may name no files and have no `[server]` section.
pub(crate) struct Nothing;

impl Outside for Nothing {
    fn read(&mut self, _: &Path) -> io::Result<Vec<u8>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this policy may name no files"))
    }

    fn set(&mut self, _: &str, _: toml::Value, _: Place) -> Result<(), SettingError> {
        Err(SettingError::Unknown("this policy may have no [server] section".into()))
    }
}
