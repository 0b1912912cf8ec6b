//! Asks the server what it counts.

use tgm_session::{Dsn, TgmPool};

use crate::failure::Failure;

/// Asks the server, through a pool of its own.
#[derive(Debug)]
pub(super) struct Counter {
    server: TgmPool,
}

/// How many leases are active, and how many are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) active: u64,
    pub(super) max: Option<u64>,
}

impl Counter {
    /// Connects to the server at `url`.
    pub(super) fn new(url: &str) -> Result<Self, Failure> {
        Ok(Self { server: TgmPool::from_dsn(&Dsn::parse(url)?)? })
    }

    /// Counts the leases that `organization` holds of `service`.
    pub(super) async fn pool(&self, organization: &str, service: &str) -> Result<Count, Failure> {
        let state = self.server.state(service, organization).await?;
        Ok(Count { active: state.borrowed, max: state.max })
    }
}
