//! What goes wrong with a database.

use std::error::Error as _;
use std::time::Duration;

use tokio_postgres::error::SqlState;

/// A failure of the database, or no answer in time. Whether it did anything is unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("the database did not answer within {0:?}")]
    Late(Duration),
    #[error("{}", explain(.0))]
    Database(#[from] tokio_postgres::Error),
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// Whether the database has no more room.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Database(error) if error.code() == Some(&SqlState::DISK_FULL))
    }
}

/// The text of an error of the database, with what the server said.
pub(crate) fn explain(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(database), _) => format!("{} ({})", database.message(), database.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

pub(crate) fn is_lock_timeout(error: &tokio_postgres::Error) -> bool {
    // The time-out of statements may come first where the lock was taken late.
    error.code().is_some_and(|code| {
        *code == SqlState::LOCK_NOT_AVAILABLE || *code == SqlState::QUERY_CANCELED
    })
}
