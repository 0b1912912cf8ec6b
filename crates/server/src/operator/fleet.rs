//! Handing the leadership of the fleet over.

use std::sync::Arc;

use store::fleet::{Member, StepDownError};

use super::changes::Attribution;
use super::outcome::Done;
use super::{By, Operator, OperatorError};

impl From<StepDownError> for OperatorError {
    fn from(error: StepDownError) -> Self {
        match error {
            StepDownError::NoAnswer
            | StepDownError::Unconfirmed
            | StepDownError::Deposed
            | StepDownError::Closing => Self::NotNow(error.to_string()),
            error => Self::Conflict(error.to_string()),
        }
    }
}

impl Operator {
    /// Hands the leadership of the fleet over to another server: one with the same policy, or with any if
    /// `force` is set. No call fails, and no session ends.
    ///
    /// Cancellation: the handover goes on.
    ///
    /// # Errors
    ///
    /// [`OperatorError::Conflict`] when there is no fleet, this server does not lead it, or no other server
    /// is ready with the same policy; [`OperatorError::NotNow`] when the database does not answer. After
    /// an error this server is what it was before, or another one leads.
    pub async fn step_down(
        self: &Arc<Self>,
        force: bool,
        by: By<'_>,
    ) -> Result<Done, OperatorError> {
        let attribution = Attribution::try_from(by)?;
        let operator = self.clone();
        self.run_change(async move {
            let Member { address, .. } = operator.store.successor(force).await?;
            // The list is the next leader's afterwards.
            let action = format!("asked the leader to hand over, to {address}");
            let entry = operator.new_entry(attribution, action);
            let number = operator.store.record(None, entry.clone()).await;
            let number = number.map_err(|error| OperatorError::NotNow(error.to_string()))?;
            let done = operator.publish(operator.audit_entry(number).unwrap_or(entry));
            let Member { address, .. } = operator.store.step_down(force).await?;
            Ok(Done { summary: format!("handed the leadership over to {address}"), ..done })
        })
        .await
    }

    /// Tells what [`Operator::step_down`] would do now.
    ///
    /// # Errors
    ///
    /// As [`Operator::step_down`].
    pub async fn plan_step_down(&self, force: bool) -> Result<Done, OperatorError> {
        let Member { address, .. } = self.store.successor(force).await?;
        Ok(Done { ended: 0, summary: format!("would hand the leadership over to {address}") })
    }
}
