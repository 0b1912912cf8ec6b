//! What the server itself says it counts.

use tgm_session::{Dsn, TgmPool};

use crate::failure::Failure;

/// Asks the server, beside the clients of the story.
#[derive(Debug)]
pub(super) struct Watch {
    server: TgmPool,
}

/// How many leases a pool has, and how many it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) active: u64,
    pub(super) max: Option<u64>,
}

impl Watch {
    /// Watches the server at `url`.
    pub(super) fn new(url: &str) -> Result<Self, Failure> {
        Ok(Self { server: TgmPool::from_dsn(&Dsn::parse(url)?)? })
    }

    /// Counts the leases that `organization` holds of `service`.
    pub(super) async fn pool(&self, organization: &str, service: &str) -> Result<Count, Failure> {
        let state = self.server.state(service, organization).await?;
        Ok(Count { active: state.borrowed, max: state.max })
    }
}
