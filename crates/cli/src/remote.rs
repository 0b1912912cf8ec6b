//! The session server behind a `tgm://` URL.

use std::sync::Arc;

use tgm_session::{Dsn, Error, TgmConfig, TgmPool};

use crate::failure::Failure;

/// A pool of one server, and the address of that server.
#[derive(Debug)]
pub(crate) struct Remote {
    /// The pool: its leases, and what the server counts.
    pub(crate) pool: Arc<TgmPool>,
    endpoint: String,
}

impl Remote {
    /// Makes the pool of the server that `dsn` names. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when the URL is wrong. Needs a runtime.
    pub(crate) fn new(dsn: &Dsn) -> Result<Self, Failure> {
        let config = TgmConfig::from_dsn(dsn)?;
        Ok(Self { pool: Arc::new(TgmPool::connect(&config)?), endpoint: config.shown_endpoint() })
    }

    /// The failure of a call that ended with `error`. It names the address if the server is unavailable.
    pub(crate) fn failure(&self, error: Error) -> Failure {
        match Failure::from(error) {
            failure @ Failure::Unavailable(_) => failure.about(&self.endpoint),
            failure => failure,
        }
    }
}
