//! Handing the leadership over on purpose.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::fleet::{Member, StepDownError};

/// A handover that is under way: nothing more is applied.
pub(super) struct Handover {
    pub(super) successor: Member,
    /// When the leader goes on, if not everything is committed by then.
    pub(super) give_up_at: Duration,
    pub(super) is_released: bool,
    pub(super) reply: oneshot::Sender<Result<Member, StepDownError>>,
}

/// What the leadership looks like to a handover.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    /// Whether this server leads.
    pub(super) leads: bool,
    /// Whether the database may have a row of this server that is not released.
    pub(super) has_row: bool,
    pub(super) has_committed_all: bool,
}

/// What a handover does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// Everything is committed: the row is released to the successor.
    Release,
    /// The leader applies changes again.
    GoOn,
    /// It is over.
    End(Result<(), StepDownError>),
}

impl Handover {
    pub(super) fn next(&self, now: Duration, situation: Situation) -> Next {
        let Situation { leads, has_row, has_committed_all } = situation;
        if self.is_released {
            // The release was acknowledged, or it was tried for long enough.
            if has_row { Next::Wait } else { Next::End(Ok(())) }
        } else if !leads {
            Next::End(Err(StepDownError::Deposed))
        } else if has_committed_all {
            Next::Release
        } else if now >= self.give_up_at {
            Next::GoOn
        } else {
            Next::Wait
        }
    }

    pub(super) fn end(self, outcome: Result<(), StepDownError>) {
        // Nobody may wait for the answer.
        drop(self.reply.send(outcome.map(|()| self.successor)));
    }
}
