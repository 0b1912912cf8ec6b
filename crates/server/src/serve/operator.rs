//! What an operator does to a server that runs within a program of their own.

use std::sync::Arc;

use lease::{LeaseId, Reason, Usage};
use policy::Policy;
use store::{ReportError, Reported, Unavailable};

use super::Running;
use crate::error::Error;
use crate::operator::Operator;

/// Ending sessions and changing the policy while the server runs.
///
/// Whoever holds a lease that ends here hears of it at once where it is attached, and with its next
/// keep-alive otherwise; the reason stays known for ten minutes at least.
impl Running {
    /// The operator's side of the server, which the admin port uses too.
    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

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

    /// Puts another policy into force, as [`Operator::set_policy`] does.
    ///
    /// # Errors
    ///
    /// As [`Operator::set_policy`].
    pub async fn set_policy(&self, policy: Policy) -> Result<usize, Error> {
        self.operator.set_policy(policy).await
    }

    /// Counts a report of usage, as [`Operator::report`] does.
    ///
    /// # Errors
    ///
    /// As [`Operator::report`].
    pub async fn report(
        &self,
        indexer: Option<&str>,
        idempotency_key: Option<&str>,
        usages: &[Usage<'_>],
    ) -> Result<Reported, ReportError> {
        self.operator.report(indexer, idempotency_key, usages).await
    }
}
