//! The bearer token of the admin port.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::error::Error;

/// The bearer token of the admin port, kept as its SHA-256.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// Hashes the token that callers have to show; the token itself is not kept.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a token that is empty or that no header can carry, because of a blank
    /// or a line break at an end, a control character, or one beyond ASCII. It is not repeated.
    ///
    /// ```
    /// use tgm_session_server::AdminToken;
    ///
    /// assert!(AdminToken::new("open sesame").is_ok());
    /// let error = AdminToken::new("sesame\n").unwrap_err();
    /// assert!(error.to_string().starts_with("admin_token: it begins or ends with"), "{error}");
    /// ```
    pub fn new(token: &str) -> Result<Self, Error> {
        let problem =
            |problem: &str| Error::Setting { name: "admin_token", problem: problem.into() };
        Self::read(token).map_err(problem)
    }

    /// As [`AdminToken::new`], but returns only the problem.
    pub(crate) fn read(token: &str) -> Result<Self, &'static str> {
        if token.is_empty() {
            return Err("an empty token protects nothing");
        }
        if token.trim() != token {
            return Err(
                "it begins or ends with a blank or a line break, which no header can carry",
            );
        }
        if !token.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Err("it has a character that no header can carry: use visible ASCII");
        }
        Ok(Self(Sha256::digest(token).into()))
    }

    pub(crate) fn matches(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.ct_eq(&shown).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken([REDACTED])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_and_not_repeated() {
        for token in ["", " s3same", "s3same ", "s3same\n", "\ts3same", "s3\tsame", "s3\nsame"] {
            let problem = AdminToken::read(token).unwrap_err();
            assert!(!problem.contains("same"), "{problem}");
        }
        for token in ["s3same\u{e9}", "s3same\u{7f}", "s3same\0", "\u{a0}s3same", "s3same\u{2028}"]
        {
            AdminToken::read(token).unwrap_err();
        }
        for token in ["s", "open s3same", "!~", "YWJj+/="] {
            AdminToken::read(token).unwrap();
        }
    }
}
