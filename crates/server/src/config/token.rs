//! The bearer token of the admin port. It is a setting, or is in a file that is read again when it
//! changes.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::watch::{self, Digest, Watched};
use crate::error::Error;

/// The bearer token of the admin port, kept as its SHA-256.
#[derive(Clone)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// Hashes the token that callers have to show; the token itself is not kept.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a token that is empty or that no header can carry, because of a
    /// space or a line break at an end, a control character, or one beyond ASCII. It is not repeated.
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
                "it begins or ends with a space or a line break, which no header can carry",
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

/// The token that callers have to show now.
#[derive(Debug)]
pub(crate) struct TokenInForce {
    /// The file of the token, if any.
    path: Option<PathBuf>,
    current: ArcSwap<AdminToken>,
}

impl TokenInForce {
    /// The `token`, or the one in the `file` with the watch of the file; `None` without a token.
    ///
    /// # Errors
    ///
    /// Both a token and a file are given, or the file has no valid token.
    pub(crate) fn load(
        token: Option<&AdminToken>,
        file: Option<&Path>,
    ) -> Result<Option<(Self, Option<Watched>)>, Error> {
        let bad = |problem: String| Error::Setting { name: "admin_token_file", problem };
        match (token, file) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(bad("admin_token is given too: give one of them".into())),
            (Some(token), None) => Ok(Some((Self::new(None, token.clone()), None))),
            (None, Some(path)) => {
                let contents = watch::read(path)
                    .map_err(|error| bad(format!("cannot read {}: {error}", path.display())))?;
                let token = token_in(path, &contents).map_err(bad)?;
                let watched = Watched::new([(path.to_owned(), Digest::of(&contents))]);
                Ok(Some((Self::new(Some(path.to_owned()), token), Some(watched))))
            }
        }
    }

    fn new(path: Option<PathBuf>, token: AdminToken) -> Self {
        Self { path, current: ArcSwap::from_pointee(token) }
    }

    #[cfg(test)]
    pub(crate) fn given(token: &str) -> Self {
        Self::new(None, AdminToken::new(token).unwrap())
    }

    pub(crate) fn matches(&self, shown: &[u8]) -> bool {
        self.current.load().matches(shown)
    }

    /// Takes the token from the new contents of its file. If they contain no valid token, the
    /// previous token stays in force.
    pub(crate) fn reload(&self, mut contents: Vec<io::Result<Vec<u8>>>) {
        let (Some(path), Some(contents)) = (&self.path, contents.pop()) else { return };
        let file = path.display();
        let token = match contents {
            Ok(contents) => token_in(path, &contents),
            Err(error) => Err(format!("cannot read {file}: {error}")),
        };
        match token {
            Ok(token) => {
                self.current.store(Arc::new(token));
                tracing::info!(%file, "the new admin token is in force");
            }
            Err(error) => tracing::error!(%error, "the previous admin token stays in force"),
        }
    }
}

/// Reads the token from the contents of a file, without one line break at the end.
fn token_in(path: &Path, contents: &[u8]) -> Result<AdminToken, String> {
    let text = std::str::from_utf8(contents).map_err(|_| "it is not text");
    let token = text.and_then(|text| {
        let token = text.strip_suffix('\n').unwrap_or(text);
        AdminToken::read(token.strip_suffix('\r').unwrap_or(token))
    });
    token.map_err(|problem| format!("{}: {problem}", path.display()))
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

    #[test]
    fn one_line_break_at_the_end_of_a_file_is_no_part_of_its_token() {
        let path = Path::new("token");
        for contents in ["s3same", "s3same\n", "s3same\r\n"] {
            assert!(token_in(path, contents.as_bytes()).unwrap().matches(b"s3same"));
        }
        for contents in [&b"s3same\n\n"[..], b"", b"\n", b"s3same \n", b"two\nlines\n", b"\xff"] {
            let problem = token_in(path, contents).unwrap_err();
            assert!(problem.starts_with("token: ") && !problem.contains("s3same"), "{problem}");
        }
    }
}
