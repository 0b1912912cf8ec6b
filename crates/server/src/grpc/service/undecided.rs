//! Answers to borrows that cannot be decided now.
//!
//! An undecided borrow is neither granted nor refused, and gets `UNAVAILABLE`. But Substreams fails a
//! job after any error of a worker borrow, and tries again after the answer `resource_exhausted`. So an
//! undecided borrow of a worker gets this answer instead.

use bytes::Bytes;
use http::header::HeaderValue;
use lease::Kind;
use tonic::{Code, Status};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::{BorrowWorkerRequest, BorrowWorkerResponse, WorkersState};

use super::translate::refused_by;
use crate::grpc::framing::decode;
use crate::grpc::unary::Answer;
use crate::headers::DENIED_SCOPE;
use crate::live::Live;
use crate::metrics::BorrowCounters;

/// The call, if it is known to be a borrow, and the facts for its answer if it stays undecided.
#[derive(Debug, Default)]
pub(crate) struct Undecided<'l> {
    borrow: Option<(Kind, &'l BorrowCounters)>,
    limit: u64,
}

impl<'l> Undecided<'l> {
    /// Returns the facts of a borrow from its message.
    pub(crate) fn borrow(live: &'l Live, message: Bytes) -> Self {
        let Ok(message) = decode::<BorrowWorkerRequest>(message) else { return Self::default() };
        let mut undecided = Self::default();
        let counters = live.borrows(live.policy.service(&message.service));
        undecided.set_borrow(kind_of(&message), counters);
        undecided
    }

    /// Notes that the call is a borrow of this kind, and its counters.
    pub(super) fn set_borrow(&mut self, kind: Kind, counters: &'l BorrowCounters) {
        self.borrow = Some((kind, counters));
    }

    /// Notes that the server has the most leases that it may have.
    pub(crate) fn set_limit(&mut self, max_leases: u64) {
        self.limit = max_leases;
    }

    /// The limit of the server, if it was reached; else 0.
    pub(crate) const fn limit(&self) -> u64 {
        self.limit
    }

    /// Turns an undecided borrow into its final answer, and counts it. Other answers stay as they are.
    pub(crate) fn settle(self, answer: Result<Answer, Status>) -> Result<Answer, Status> {
        match (self.borrow, &answer) {
            (Some((kind, counters)), Err(status)) if status.code() == Code::Unavailable => {
                counters.count_undecided(kind);
                match kind {
                    Kind::Worker => Ok(busy(self.limit)),
                    Kind::Session => answer,
                }
            }
            _ => answer,
        }
    }
}

/// The kind of lease that a borrow asks for, before it is validated.
pub(super) const fn kind_of(message: &BorrowWorkerRequest) -> Kind {
    if message.max_worker_for_trace_id > 0 { Kind::Worker } else { Kind::Session }
}

/// The answer to an undecided borrow of a worker. `limit` is the one of the server, if it was reached.
fn busy(limit: u64) -> Answer {
    Answer::new(&BorrowWorkerResponse {
        worker_key: String::new(),
        status: BorrowStatus::ResourceExhausted.into(),
        worker_state: Some(refused_by(limit, WorkersState::default())),
        minimal_worker_life_duration: None,
    })
    .metadata(DENIED_SCOPE, HeaderValue::from_static("server"))
}
