//! The operations of a store that concern the other servers of its fleet.

use tokio::sync::oneshot;

use crate::desk::{Purpose, StepDown};
use crate::fleet::{Member, MemberId, StepDownError};
use crate::shared::Shared;
use crate::store::Store;

type Answer = oneshot::Receiver<Result<Member, StepDownError>>;

async fn answered(answer: Answer) -> Result<Member, StepDownError> {
    // The thread of the leadership has ended.
    answer.await.unwrap_or(Err(StepDownError::Closing))
}

impl Shared {
    fn ask_to_step_down(&self, force: bool, purpose: Purpose) -> Answer {
        let (reply, answer) = oneshot::channel();
        if self.is_alone() {
            drop(reply.send(Err(StepDownError::Alone)));
        } else {
            self.desk.request(StepDown { force, purpose, reply });
            self.wake();
        }
        answer
    }
}

/// What a server of a fleet knows of the others, and what it may ask of them.
impl Store {
    /// The servers of the fleet, as the database showed them about a second ago. Empty where no other
    /// server can use the store.
    pub fn members(&self) -> Vec<Member> {
        self.shared.desk.members()
    }

    /// The id of this server among them.
    pub fn member(&self) -> Option<MemberId> {
        self.shared.desk.own.get().copied()
    }

    /// Whether the other servers of the fleet know this one. Only then can it be a successor.
    pub fn is_member(&self) -> bool {
        self.shared.desk.is_member()
    }

    /// Sets the hash of the policy file in force here, which the other servers see. A leader hands over
    /// to a server with the same hash.
    pub fn set_policy_hash(&self, hash: &str) {
        self.shared.desk.set_policy_hash(hash);
    }

    /// Hands the leadership over to a live standby with the same policy, or with any policy if `force` is
    /// set. Returns that server.
    ///
    /// The leader makes no more changes: calls are answered with
    /// [`Unavailable::Standby`](crate::Unavailable::Standby), and certainly not applied. Then it commits
    /// what it has applied, and releases the leadership to the successor. It may lead again later.
    ///
    /// Cancellation: the handover has begun when the method returns, and goes on.
    ///
    /// # Errors
    ///
    /// After an error this server is what it was before, or another one leads.
    pub fn step_down(
        &self,
        force: bool,
    ) -> impl Future<Output = Result<Member, StepDownError>> + Send + use<> {
        answered(self.shared.ask_to_step_down(force, Purpose::StepDown))
    }

    /// Returns the server to which [`Store::step_down`] would hand over now. Nothing changes.
    ///
    /// # Errors
    ///
    /// As [`Store::step_down`].
    pub fn successor(
        &self,
        force: bool,
    ) -> impl Future<Output = Result<Member, StepDownError>> + Send + use<> {
        answered(self.shared.ask_to_step_down(force, Purpose::Plan))
    }

    /// Takes nothing over from now on, and hands over as [`Store::step_down`] does with `force`: the server
    /// is about to stop, and passes its calls on in the meantime. If there is no successor, it leads until
    /// [`Store::close`].
    ///
    /// # Errors
    ///
    /// As [`Store::step_down`].
    pub fn retire(&self) -> impl Future<Output = Result<Member, StepDownError>> + Send + use<> {
        answered(self.shared.ask_to_step_down(true, Purpose::Retire))
    }

    /// Resolves when the store has failed and is of no more use in its fleet: the leadership is released,
    /// and the process should end, so that it is started again. [`Store::ready`] tells why. A store that
    /// no other server uses goes on to extend leases, so the future never resolves.
    pub fn useless(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut is_useless = self.shared.desk.is_useless.subscribe();
        async move {
            if is_useless.wait_for(|is_useless| *is_useless).await.is_err() {
                std::future::pending().await
            }
        }
    }
}
