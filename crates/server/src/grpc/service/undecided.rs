//! Borrows that cannot be decided now, wherever that turns out.
//!
//! Substreams tries the borrow of a worker again after the answer `resource_exhausted`, and fails its job
//! for good after any error. So a worker is never told `UNAVAILABLE`, which is all that a borrow is told
//! that was not decided: not granted, and refused neither by a ceiling nor for what it asks.

use bytes::Bytes;
use http::header::HeaderValue;
use lease::Kind;
use tonic::{Code, Status};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::{BorrowWorkerRequest, BorrowWorkerResponse, WorkersState};

use super::counts::refused_by;
use crate::grpc::framing::decode;
use crate::grpc::headers::DENIED_SCOPE;
use crate::grpc::unary::Answer;
use crate::live::Live;
use crate::metrics::BorrowCounters;

/// A call that may be a borrow, as far as is known what it asks for.
#[derive(Debug, Default)]
pub(crate) struct Undecided<'l> {
    borrow: Option<(Kind, &'l BorrowCounters)>,
    ceiling: u64,
}

impl<'l> Undecided<'l> {
    /// A borrow that comes to no decision, by its message.
    pub(crate) fn borrow(live: &'l Live, message: Bytes) -> Self {
        let Ok(message) = decode::<BorrowWorkerRequest>(message) else { return Self::default() };
        let mut undecided = Self::default();
        let counters = live.borrows(live.policy.service(&message.service));
        undecided.asks_for(kind_of(&message), counters);
        undecided
    }

    /// Notes what is asked for, and where it is counted.
    pub(super) fn asks_for(&mut self, kind: Kind, counters: &'l BorrowCounters) {
        self.borrow = Some((kind, counters));
    }

    /// Notes that the server has as many leases as it may have.
    pub(crate) fn reaches(&mut self, max_leases: u64) {
        self.ceiling = max_leases;
    }

    /// The ceiling of the server that was reached; 0 when it is none.
    pub(crate) const fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// The answer to the call that came to this: a borrow that was not decided is counted, and that of a
    /// worker is to be tried again.
    pub(crate) fn settle(self, answer: Result<Answer, Status>) -> Result<Answer, Status> {
        match (self.borrow, &answer) {
            (Some((kind, counters)), Err(status)) if status.code() == Code::Unavailable => {
                counters.count_undecided(kind);
                match kind {
                    Kind::Worker => Ok(busy(self.ceiling)),
                    Kind::Session => answer,
                }
            }
            _ => answer,
        }
    }
}

/// What a borrow asks for, before anybody has looked whether it makes sense.
pub(super) const fn kind_of(message: &BorrowWorkerRequest) -> Kind {
    if message.max_worker_for_trace_id > 0 { Kind::Worker } else { Kind::Session }
}

/// What a worker is told that cannot be decided on now; `ceiling` is the one that is reached, if any.
fn busy(ceiling: u64) -> Answer {
    Answer::new(&BorrowWorkerResponse {
        worker_key: String::new(),
        status: BorrowStatus::ResourceExhausted.into(),
        worker_state: Some(refused_by(ceiling, WorkersState::default())),
        minimal_worker_life_duration: None,
    })
    .metadata(DENIED_SCOPE, HeaderValue::from_static("server"))
}
