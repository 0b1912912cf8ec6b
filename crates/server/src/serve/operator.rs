//! What an operator does to a server that runs within a program of their own.

use std::sync::Arc;
use std::time::Duration;

use lease::{LeaseId, Reason, Usage};

use super::{Running, store_failed};
use crate::error::Error;
use crate::live::Live;
use crate::policy::Policy;
use crate::store::{ReportError, Reported, Store as _, Unavailable};

/// How often, and how many times, to look whether calls under the old policy are over.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
const LOOKS: u32 = 1_000;

/// Ending sessions and changing the policy while the server runs.
///
/// Whoever holds a lease that ends here hears of it at once where it is attached, and with its next
/// keep-alive otherwise; the reason stays known for ten minutes at least.
impl Running {
    /// Ends one lease at once, and answers whether there was such a lease.
    ///
    /// Durable when it answers. Cancellation: dropped, the lease may have ended.
    ///
    /// # Errors
    ///
    /// The store cannot make changes.
    ///
    /// ```
    /// use tgm_session_server::store::StoreUrl;
    /// use tgm_session_server::{Config, Policy, Server};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// # let mut config = Config::new(Policy::built_in(), StoreUrl::Memory);
    /// # config.listen.set_port(0);
    /// # config.admin_listen.set_port(0);
    /// let server = Server::bind(config).await.unwrap().start().await.unwrap();
    /// let nobodys = lease::LeaseId::new(0, 1, [0; 12]);
    /// assert_eq!(server.revoke(nobodys, lease::Reason::Operator).await, Ok(false));
    /// # server.stop().await.unwrap();
    /// # });
    /// ```
    pub async fn revoke(&self, id: LeaseId, reason: Reason) -> Result<bool, Unavailable> {
        self.store.revoke(id, reason).await
    }

    /// Puts another policy into force, and answers how many leases ended by it: those of disabled
    /// organizations and API keys, and of organizations with a spent budget.
    ///
    /// Lowered limits end nobody. Attached streams of indexers that are no more end with their next
    /// batch. Cancellation: dropped, the policy is in force, and leases may live on that it does not
    /// allow, until a policy is set again.
    ///
    /// # Errors
    ///
    /// [`Error::Anonymous`] when the policy would open the port to everybody; nothing changed then.
    /// [`Error::StoreFailed`] when leases could not be ended; the policy is in force then.
    pub async fn set_policy(&self, policy: Policy) -> Result<usize, Error> {
        if !self.anonymous && !policy.has_indexers() {
            return Err(Error::Anonymous { listen: self.grpc_address });
        }
        // One after the other, so that no policy ends what a later one allows.
        let _changing = self.changing.lock().await;
        let live = Arc::new(Live::new(policy, &self.metrics));
        let before = self.live.swap(live.clone());
        // Calls that looked at the old policy hold on to it until they are over.
        let calls_under_way = Arc::strong_count(&before) > 1;
        let mut ended = self.store.enforce(&live.policy).await.map_err(store_failed)?;
        if calls_under_way {
            // A borrow with terms of the old policy may have been granted since.
            for _ in 0..LOOKS {
                if Arc::strong_count(&before) == 1 {
                    break;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            ended += self.store.enforce(&live.policy).await.map_err(store_failed)?;
        }
        Ok(ended)
    }

    /// Counts a report of usage, all of it or nothing, and ends the leases of each organization of
    /// which it spends a budget; those of observed services live on.
    ///
    /// The same `idempotency_key` from the same `indexer` counts once in ten minutes. Durable when
    /// it answers. Cancellation: dropped, the report may have been counted.
    ///
    /// # Errors
    ///
    /// A field that cannot be what it is, or the store cannot make changes.
    pub async fn report(
        &self,
        indexer: Option<&str>,
        idempotency_key: Option<&str>,
        usages: &[Usage<'_>],
    ) -> Result<Reported, ReportError> {
        let reported = {
            let live = self.live.load();
            self.store.report(indexer, idempotency_key, usages, &live.policy)
        };
        reported.await
    }
}
