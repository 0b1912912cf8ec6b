//! The pools of the clients, which are closed while the servers still run, also when the demo is stopped.

use std::time::Duration;

use tgm_session::Pool;

use crate::failure::Failure;

/// How long the clients of a demo that is stopped have to return what they hold.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// The pools of all clients.
#[derive(Debug, Default)]
pub(super) struct Pools(Vec<Pool>);

impl Pools {
    pub(super) async fn connect(&mut self, url: &str) -> Result<Pool, Failure> {
        let pool = tgm_session::connect(url).await?;
        self.0.push(pool.clone());
        Ok(pool)
    }

    /// Closes all of them. What they hold is returned.
    pub(super) async fn close(self) {
        for pool in self.0 {
            // What is not returned ends with the servers.
            let _ = pool.close(CLOSE_WITHIN).await;
        }
    }
}
