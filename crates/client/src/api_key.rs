//! The key that a pool shows to its server: a fixed one, or the contents of a file that is read again.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::Duration;

use connect::NamedFile;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::Error;
use crate::secret::Secret;

/// The most bytes of a file with a key.
const MOST_BYTES: u64 = 8 * 1024;

/// When a file is read again: before a call, and after a server has refused the key.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LOOK_AGAIN_REFUSED: Duration = Duration::from_millis(100);

/// What every call shows to its server.
pub(crate) enum ApiKey {
    /// It never changes.
    Fixed(Option<HeaderValue>),
    /// The last valid contents of a file.
    Filed(Filed),
}

/// A key, with the number of the reading that brought it.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) key: Option<HeaderValue>,
    reading: u64,
}

pub(crate) struct Filed {
    file: NamedFile,
    latest: Arc<Mutex<Latest>>,
}

/// The last valid key of a file.
struct Latest {
    shown: Shown,
    /// When the last reading began.
    read_at: Instant,
    /// The problem of the file that was logged last, while it lasts.
    logged: Option<String>,
}

impl ApiKey {
    /// Makes the key that is given, or that is in `file`, which must be valid now.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when there is none in the file, or it cannot be sent.
    pub(crate) fn new(key: Option<&Secret>, file: Option<&NamedFile>) -> Result<Self, Error> {
        if let Some(file) = file {
            let wrong =
                |problem| Error::invalid(format!("`indexer-api-key-file={file}`: {problem}"));
            let key = read(file).map_err(|problem| match problem {
                Problem::Io(error) => wrong(error.to_string()).caused_by(error),
                problem => wrong(problem.to_string()),
            })?;
            let latest = Latest {
                shown: Shown { key: Some(key), reading: 0 },
                read_at: Instant::now(),
                logged: None,
            };
            let latest = Arc::new(Mutex::new(latest));
            return Ok(Self::Filed(Filed { file: file.clone(), latest }));
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
        let shown = filed.latest.lock().shown.clone();
        let is_other = |shown: &Shown| shown.reading != refused.reading;
        if is_other(&shown) {
            return Some(shown);
        }
        Some(filed.read_after(LOOK_AGAIN_REFUSED).await).filter(is_other)
    }
}

impl Filed {
    /// Reads the file, unless it was read less than `age` ago or is being read.
    async fn read_after(&self, age: Duration) -> Shown {
        let due = {
            let mut latest = self.latest.lock();
            // The thread that reads the file holds a clone, also after its caller was dropped.
            let is_being_read = Arc::strong_count(&self.latest) > 1;
            let is_due = !is_being_read && latest.read_at.elapsed() >= age;
            is_due.then(|| {
                latest.read_at = Instant::now();
                self.latest.clone()
            })
        };
        if let Some(latest) = due {
            let file = self.file.clone();
            // The disk may hang. Other calls use the last key meanwhile.
            let reading = tokio::task::spawn_blocking(move || (read(&file), latest));
            // A runtime that is being shut down does not read.
            if let Ok((read, latest)) = reading.await {
                latest.lock().update(read, &self.file);
            }
        }
        self.latest.lock().shown.clone()
    }
}

impl Latest {
    fn update(&mut self, read: Result<HeaderValue, Problem>, file: &NamedFile) {
        match read {
            Ok(key) => {
                self.logged = None;
                if self.shown.key.as_ref() != Some(&key) {
                    self.shown = Shown { key: Some(key), reading: self.shown.reading + 1 };
                    tracing::info!(%file, "the indexer API key has changed and is in use");
                }
            }
            Err(problem) => {
                let problem = problem.to_string();
                if self.logged.as_ref() != Some(&problem) {
                    tracing::warn!(
                        %file, problem,
                        "there is no indexer API key in its file; the one before it stays"
                    );
                    self.logged = Some(problem);
                }
            }
        }
    }
}

/// What is wrong with a key or its file. The text shows nothing of the key.
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

fn read(file: &NamedFile) -> Result<HeaderValue, Problem> {
    let mut contents = Vec::new();
    File::open(&file.path)?.take(MOST_BYTES + 1).read_to_end(&mut contents)?;
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
