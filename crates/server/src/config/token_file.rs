//! The admin token in force. It is a setting, or is in a file that is read again when it changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::start::Config;
use super::token::AdminToken;
use super::watch::{self, Digest, LOOK_EVERY, Watched};
use crate::blocking::blocking;
use crate::error::Error;

/// The token that callers have to show now.
#[derive(Debug)]
pub(crate) struct TokenInForce {
    /// The file of the token, if any.
    path: Option<PathBuf>,
    current: ArcSwap<AdminToken>,
}

impl TokenInForce {
    /// The token of `config` and, if it is in a file, the watch of the file; `None` without a token.
    ///
    /// # Errors
    ///
    /// Both a token and a file are given, or the file has no valid token.
    pub(crate) fn load(config: &Config) -> Result<Option<(Self, Option<Watched>)>, Error> {
        let bad = |problem: String| Error::Setting { name: "admin_token_file", problem };
        match (&config.admin_token, &config.admin_token_file) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(bad("admin_token is given too: give one of them".into())),
            (Some(token), None) => Ok(Some((Self::new(None, token.clone()), None))),
            (None, Some(path)) => {
                let contents = watch::read(path)
                    .map_err(|error| bad(format!("cannot read {}: {error}", path.display())))?;
                let token = token_in(path, &contents).map_err(bad)?;
                let watched = Watched::new([(path.clone(), Digest::of(&contents))]);
                Ok(Some((Self::new(Some(path.clone()), token), Some(watched))))
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

    /// Reads the file again whenever it changes, for ever. If it has no valid token, the token before
    /// stays in force.
    pub(crate) async fn follow(self: Arc<Self>, mut watched: Watched) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (looked, changed) = blocking(move || {
                let changed = watched.changed();
                (watched, changed)
            })
            .await;
            watched = looked;
            if let (Some(path), Some(contents)) = (&self.path, changed.and_then(|mut it| it.pop()))
            {
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
                    Err(error) => tracing::error!(%error, "the admin token before stays in force"),
                }
            }
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
