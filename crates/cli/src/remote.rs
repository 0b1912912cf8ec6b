//! The session servers behind a `tgm://` URL.

use std::sync::Arc;

use tgm_session::{Dsn, Error, TgmConfig, TgmPool};

use crate::failure::Failure;

/// A pool, and the addresses of its servers.
#[derive(Debug)]
pub(crate) struct Remote {
    /// The pool: its leases, and what the server counts.
    pub(crate) pool: Arc<TgmPool>,
    servers: String,
}

impl Remote {
    /// Makes the pool of the servers that `dsn` names. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when the URL is wrong. Needs a runtime.
    pub(crate) fn new(dsn: &Dsn) -> Result<Self, Failure> {
        let config = TgmConfig::from_dsn(dsn)?;
        Ok(Self { pool: Arc::new(TgmPool::connect(&config)?), servers: config.shown_endpoints() })
    }

    /// The failure of a call that ended with `error`. It names the addresses if no server is available.
    pub(crate) fn failure(&self, error: Error) -> Failure {
        match Failure::from(error) {
            failure @ Failure::Unavailable(_) => failure.about(&self.servers),
            failure => failure,
        }
    }
}
