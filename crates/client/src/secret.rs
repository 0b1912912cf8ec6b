//! A secret text.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};

/// A secret text, such as a key. `Debug` does not show it, and dropping it wipes its memory.
///
/// ```
/// let key = tgm_session::Secret::new("s3cret");
/// assert_eq!(key.expose(), "s3cret");
/// assert!(!format!("{key:?}").contains("s3cret"));
/// ```
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Makes a secret of a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Returns the text.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([REDACTED])")
    }
}
