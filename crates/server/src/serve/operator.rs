//! The operator's functions of a server that is embedded in a program.

use std::sync::Arc;

use lease::{LeaseId, Reason, Usage};
use policy::Policy;
use store::{ReportError, Reported, Unavailable};

use super::running::Running;
use crate::error::Error;
use crate::operator::Operator;

/// Ends sessions and changes the policy while the server runs.
///
/// An attached holder of a lease that ends is notified at once, any other holder with its next
/// keep-alive. The server remembers the reason for at least ten minutes.
impl Running {
    /// The operator's side of the server, which the admin port uses too.
    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

    /// Ends one lease at once. Returns whether there was such a lease.
    ///
    /// Durable when it returns. Cancellation: when the future is dropped, the lease may have ended.
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
    /// let unknown = lease::LeaseId::new(0, 1, [0; 12]);
    /// assert_eq!(server.revoke(unknown, lease::Reason::Operator).await, Ok(false));
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
