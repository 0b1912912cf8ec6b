//! The key that a pool shows to its server: as it was given, or out of a file that is read again.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use connect::NamedFile;
use http::HeaderValue;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::error::Error;
use crate::secret::Secret;

/// The most bytes of a file with a key.
const MOST_BYTES: u64 = 8 * 1024;

/// How old what was read may be when a key is needed, and when a server has refused it.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LOOK_AGAIN_REFUSED: Duration = Duration::from_millis(100);

/// What every call shows to its server.
pub(crate) enum ApiKey {
    /// It never changes.
    Fixed(Option<HeaderValue>),
    /// It is what the file holds, or held when it was last sound.
    Filed(Box<Filed>),
}

/// A key, with the number of the reading that brought it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown {
    pub(crate) key: Option<HeaderValue>,
    reading: u64,
}

pub(crate) struct Filed {
    file: NamedFile,
    shown: watch::Sender<Shown>,
    /// Held by the one who reads.
    reader: Arc<Mutex<Reader>>,
}

struct Reader {
    read_at: Instant,
    /// What is wrong with the file by now, as far as it was told.
    told: Option<String>,
}

impl ApiKey {
    /// The key that is given, or that is in `file`, which has to be sound this time.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when there is none in the file, or it cannot be sent.
    pub(crate) fn new(key: Option<&Secret>, file: Option<&NamedFile>) -> Result<Self, Error> {
        if let Some(file) = file {
            let wrong =
                |problem| Error::invalid(format!("`indexer-api-key-file={file}`: {problem}"));
            let key = read(file.path.clone()).map_err(|problem| match problem {
                Problem::Io(error) => wrong(error.to_string()).caused_by(error),
                problem => wrong(problem.to_string()),
            })?;
            return Ok(Self::Filed(Box::new(Filed {
                file: file.clone(),
                shown: watch::Sender::new(Shown { key: Some(key), reading: 0 }),
                reader: Arc::new(Mutex::new(Reader { read_at: Instant::now(), told: None })),
            })));
        }
        let key = key.map(|key| header(key.expose().as_bytes()));
        let wrong = |problem| Error::invalid(format!("`indexer-api-key` {problem}"));
        Ok(Self::Fixed(key.transpose().map_err(wrong)?))
    }

    /// The key to show now. Cancellation safe.
    pub(crate) async fn present(&self) -> Shown {
        match self {
            Self::Fixed(key) => Shown { key: key.clone(), reading: 0 },
            Self::Filed(filed) => filed.read_after(LOOK_AGAIN).await,
        }
    }

    /// The key to show after the server has refused this one; `None` when there is no other.
    pub(crate) async fn instead_of(&self, refused: &Shown) -> Option<Shown> {
        let Self::Filed(filed) = self else { return None };
        let shown = filed.shown.borrow().clone();
        let is_other = |shown: &Shown| shown.reading != refused.reading;
        if is_other(&shown) {
            return Some(shown);
        }
        Some(filed.read_after(LOOK_AGAIN_REFUSED).await).filter(is_other)
    }
}

impl Filed {
    /// Reads the file, unless it was read less than `age` ago or somebody is at it.
    async fn read_after(&self, age: Duration) -> Shown {
        if let Ok(mut reader) = self.reader.clone().try_lock_owned()
            && reader.read_at.elapsed() >= age
        {
            reader.read_at = Instant::now();
            let path = self.file.path.clone();
            // It may hang for as long as its disk does, and nobody else reads meanwhile.
            let reading = tokio::task::spawn_blocking(move || (read(path), reader));
            // A runtime that shuts down reads nothing more.
            if let Ok((read, mut reader)) = reading.await {
                reader.take(read, &self.file, &self.shown);
            }
        }
        self.shown.borrow().clone()
    }
}

impl Reader {
    fn take(
        &mut self,
        read: Result<HeaderValue, Problem>,
        file: &NamedFile,
        shown: &watch::Sender<Shown>,
    ) {
        match read {
            Ok(key) => {
                self.told = None;
                let is_new = shown.send_if_modified(|shown| {
                    let is_new = shown.key.as_ref() != Some(&key);
                    if is_new {
                        *shown = Shown { key: Some(key), reading: shown.reading + 1 };
                    }
                    is_new
                });
                if is_new {
                    tracing::info!(%file, "the indexer API key has changed and is in use");
                }
            }
            Err(problem) => {
                let problem = problem.to_string();
                if self.told.as_ref() != Some(&problem) {
                    tracing::warn!(
                        %file, problem,
                        "there is no indexer API key in its file; the one before it stays"
                    );
                    self.told = Some(problem);
                }
            }
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(key) => f.debug_tuple("Fixed").field(key).finish(),
            Self::Filed(filed) => f.debug_tuple("Filed").field(&filed.file).finish(),
        }
    }
}

/// What is wrong with a key or its file. It shows nothing of either.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is longer than {MOST_BYTES} bytes")]
    TooLong,
    #[error("there is no key in it")]
    Empty,
    #[error("holds a character no header may")]
    Unsendable,
}

fn read(path: PathBuf) -> Result<HeaderValue, Problem> {
    let mut contents = Vec::new();
    File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > MOST_BYTES {
        return Err(Problem::TooLong);
    }
    let key = contents.trim_ascii_end();
    if key.trim_ascii_start().is_empty() {
        return Err(Problem::Empty);
    }
    header(key)
}

fn header(key: &[u8]) -> Result<HeaderValue, Problem> {
    let mut value = HeaderValue::from_bytes(key).map_err(|_| Problem::Unsendable)?;
    value.set_sensitive(true);
    Ok(value)
}
