//! Makes sure that no server leads a fleet whose store is read or written as a whole.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::fleet::Rows;

/// How often the leadership row is read while it is watched.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Returns the rows that say who leads, as `look` reads them, when no server does; `None` if there is no
/// fleet at `url`. If a server may lead it, its row is watched; `watch` is told for how long.
///
/// # Errors
///
/// A server leads, or the rows cannot be read.
pub(crate) fn watch_leadership(
    url: &str,
    look: &mut dyn FnMut() -> Result<Option<Rows>, Error>,
    watch: &mut dyn FnMut(Duration),
) -> Result<Option<Rows>, Error> {
    let seen = look()?;
    let Some(row) = seen.as_ref().map(|rows| &rows.leadership).filter(|row| !row.released) else {
        return Ok(seen);
    };
    let (began, time) = (Instant::now(), row.leader_ttl * 11 / 10);
    watch(time);
    while began.elapsed() < time {
        std::thread::sleep(LOOK_EVERY);
        if look()? != seen {
            return Err(in_use(url));
        }
    }
    Ok(seen)
}

/// The error of a store whose fleet has a leader.
pub(crate) fn in_use(url: &str) -> Error {
    let problem = "a server leads its fleet; stop all of its servers first".to_owned();
    Error::Database { url: url.to_owned(), problem }
}
