//! The worker pool: translates calls to operations of the store, and their results to answers.

mod translate;
mod undecided;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Either, ready};
use http::header::{HeaderMap, HeaderValue};
use lease::{
    BorrowId, Denied, Invalid, KeptAlive, LeaseId, Reason, Refusal, Released, Request, validate_id,
};
use policy::{Indexer, Refused};
use store::Clock;
use store::{BorrowError, Borrowed, ReleaseError, Store, Unavailable};
use tonic::Status;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, KeepAliveResponse,
    ReturnWorkerRequest, ReturnWorkerResponse, WorkersState, WorkersStateRequest,
    WorkersStateResponse, keep_alive_response, return_worker_response,
};

use crate::grpc::unary::Answer;
use crate::headers::{
    BORROW_ID, DENIED_ACTIVE, DENIED_MAX, DENIED_SCOPE, LEASE_TTL_MS, TRACES_OMITTED,
};
use crate::live::Live;
use crate::metrics::{CallCounters, Calls};
use translate::{borrowers_view, count, counts, from_wire, milliseconds, refused_by, to_wire};
pub(crate) use undecided::Undecided;

/// Why a borrow was not granted.
#[derive(Debug)]
pub(crate) enum NotBorrowed {
    /// It is refused with this status.
    Refused(Status),
    /// Another policy came into force in the meantime: the borrow has to be decided again.
    OldTerms(BorrowWorkerRequest),
}

impl From<Status> for NotBorrowed {
    fn from(status: Status) -> Self {
        Self::Refused(status)
    }
}

/// `sf.worker.v1.WorkerPool` over a store.
#[derive(Debug)]
pub(crate) struct WorkerPool {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    counters: CallCounters,
}

impl WorkerPool {
    pub(crate) fn new(store: Arc<Store>, clock: Arc<dyn Clock>, counters: CallCounters) -> Self {
        Self { store, clock, counters }
    }

    /// The counts of calls by method.
    pub(crate) const fn calls(&self) -> &Calls {
        &self.counters.by_method
    }

    /// BorrowWorker. The borrow is applied when this returns; the future waits for the answer.
    pub(crate) fn borrow<'l, 'u>(
        &self,
        live: &'l Live,
        caller: Option<&Indexer>,
        metadata: &HeaderMap,
        message: BorrowWorkerRequest,
        undecided: &'u mut Undecided<'l>,
    ) -> impl Future<Output = Result<Answer, NotBorrowed>> + use<'l, 'u> {
        match self.apply_borrow(live, caller, metadata, message, undecided) {
            Ok(answer) => Either::Left(answer),
            Err(status) => Either::Right(ready(Err(status.into()))),
        }
    }

    fn apply_borrow<'l, 'u>(
        &self,
        live: &'l Live,
        caller: Option<&Indexer>,
        metadata: &HeaderMap,
        mut message: BorrowWorkerRequest,
        undecided: &'u mut Undecided<'l>,
    ) -> Result<impl Future<Output = Result<Answer, NotBorrowed>> + use<'l, 'u>, Status> {
        let kind = undecided::kind_of(&message);
        undecided.set_borrow(kind, live.borrows(None));
        fill_in_organization(live, &mut message.organization_id)?;
        let request = Request {
            indexer: caller.map(Indexer::name),
            service: &message.service,
            organization: &message.organization_id,
            api_key: &message.api_key_id,
            trace: &message.trace_id,
            max_workers: message.max_worker_for_trace_id,
            borrow_id: borrow_id(metadata)?,
        };
        request.validate().map_err(invalid)?;
        let ruling =
            live.policy.terms(caller, &request, || self.clock.wall()).map_err(|refused| {
                live.borrows(live.policy.service(request.service)).count_refused(&refused);
                live.refusals.record_policy(&request, &refused);
                refuse(&refused)
            })?;
        let counters = live.borrows(Some(ruling.service));
        undecided.set_borrow(kind, counters);
        let outcome = self.store.borrow(&request, &ruling.terms);
        let (refusals, minimal_life) = (&*live.refusals, ruling.terms.minimal_life);
        Ok(outcome.map(move |outcome| {
            if matches!(outcome, Err(BorrowError::Refused(Refusal::OldTerms))) {
                return Err(NotBorrowed::OldTerms(message));
            }
            if let Err(BorrowError::Refused(Refusal::Full { max_leases })) = outcome {
                undecided.set_limit(max_leases);
            }
            counters.count(&outcome);
            refusals.record_store(&message, &outcome);
            Ok(borrow_answer(outcome, message.trace_id, minimal_life)?)
        }))
    }

    /// KeepAlive.
    pub(crate) async fn keep_alive(
        &self,
        caller: Option<&Indexer>,
        message: KeepAliveRequest,
    ) -> Result<Answer, Status> {
        use keep_alive_response::Status as Outcome;

        let kept = match message.worker_key.parse::<LeaseId>() {
            Ok(id) => self.store.keep_alive(id, caller.map(Indexer::name)).await,
            // No lease ever had such a key. A failed store gives no answer about any key.
            Err(_) => self.store.ready().map(|()| KeptAlive::Failed),
        }
        .map_err(unavailable)?;
        self.counters.count_keep_alive(&kept);
        let answer = |status: Outcome| Answer::new(&KeepAliveResponse { status: status.into() });
        match kept {
            KeptAlive::Extended { ttl } => {
                Ok(answer(Outcome::TtlExtended).metadata(LEASE_TTL_MS, milliseconds(ttl)))
            }
            KeptAlive::Failed => Ok(answer(Outcome::Failed)),
            KeptAlive::Revoked(why) => Err(revoked(why.reason, why.to_string())),
        }
    }

    /// ReturnWorker.
    pub(crate) async fn return_worker(
        &self,
        caller: Option<&Indexer>,
        metadata: &HeaderMap,
        message: ReturnWorkerRequest,
    ) -> Result<Answer, Status> {
        use return_worker_response::Status as Outcome;

        let minimal_life = message.minimal_worker_life_duration.map(from_wire).transpose();
        let minimal_life = minimal_life.map_err(invalid)?.unwrap_or_default();
        let caller = caller.map(Indexer::name);
        let released = match (message.worker_key.as_str(), borrow_id(metadata)?) {
            ("", Some(borrow_id)) => {
                let released = self.store.release_borrow(borrow_id, caller, minimal_life).await;
                released.map_err(|error| match error {
                    ReleaseError::Unavailable(error) => unavailable(error),
                    full @ ReleaseError::MemoryFull(_) => Status::unavailable(full.to_string()),
                })
            }
            (key, _) => match key.parse::<LeaseId>() {
                Ok(id) => self.store.release(id, caller, minimal_life).await.map_err(unavailable),
                Err(_) => self.store.ready().map(|()| Released::Missing).map_err(unavailable),
            },
        }?;
        self.counters.count_return(released);
        let status = match released {
            Released::Missing => Outcome::MissingKey,
            Released::Returned => Outcome::Returned,
            Released::Lingers { .. } => Outcome::TtlUpdated,
        };
        Ok(Answer::new(&ReturnWorkerResponse { status: status.into() }))
    }

    /// WorkersState.
    pub(crate) async fn state(
        &self,
        live: &Live,
        caller: Option<&Indexer>,
        mut message: WorkersStateRequest,
    ) -> Result<Answer, Status> {
        fill_in_organization(live, &mut message.organization_id)?;
        let WorkersStateRequest { service, organization_id: organization, api_key_id } = &message;
        validate_id("service", service, true).map_err(invalid)?;
        validate_id("organization_id", organization, true).map_err(invalid)?;
        validate_id("api_key_id", api_key_id, false).map_err(invalid)?;
        let max = live
            .policy
            .pool_limit(caller, service, organization)
            .map_err(|refused| refuse(&refused))?;
        let pool = self.store.state(service, organization).await.map_err(unavailable)?;
        let distinct = pool.traces.len() as u64 + pool.omitted;
        let traces = pool.traces.into_iter().map(|(trace, leases)| (trace.into(), count(leases)));
        let worker_state = Some(WorkersState {
            active_trace_id: count(distinct),
            worker_count_per_trace_id: traces.collect(),
            ..counts(pool.leases, max)
        });
        let answer = Answer::new(&WorkersStateResponse { worker_state });
        Ok(match pool.omitted {
            0 => answer,
            omitted => answer.metadata(TRACES_OMITTED, omitted),
        })
    }
}

fn borrow_answer(
    outcome: Result<Borrowed, BorrowError>,
    trace: String,
    minimal_life: Duration,
) -> Result<Answer, Status> {
    match outcome {
        Ok(Borrowed { grant, delivery }) => {
            let answer = Answer::new(&BorrowWorkerResponse {
                worker_key: grant.id.to_string(),
                status: BorrowStatus::Borrowed.into(),
                worker_state: Some(borrowers_view(grant.pool, trace)),
                minimal_worker_life_duration: Some(to_wire(minimal_life)),
            });
            Ok(answer.metadata(LEASE_TTL_MS, milliseconds(grant.ttl)).delivery(delivery))
        }
        Err(BorrowError::Refused(Refusal::Denied(denied))) => {
            Ok(exhausted(denied, trace, minimal_life))
        }
        Err(BorrowError::Refused(refusal)) => Err(refused_borrow(&refusal)),
        Err(BorrowError::Unavailable(error)) => Err(unavailable(error)),
    }
}

/// The answer to a borrow of a full pool, which is no error.
fn exhausted(denied: Denied, trace: String, minimal_life: Duration) -> Answer {
    let Denied { scope, active, max, pool } = denied;
    Answer::new(&BorrowWorkerResponse {
        worker_key: String::new(),
        status: BorrowStatus::ResourceExhausted.into(),
        worker_state: Some(refused_by(max, borrowers_view(pool, trace))),
        minimal_worker_life_duration: Some(to_wire(minimal_life)),
    })
    .metadata(DENIED_SCOPE, HeaderValue::from_static(scope.as_str()))
    .metadata(DENIED_ACTIVE, active)
    .metadata(DENIED_MAX, max)
}

fn borrow_id(metadata: &HeaderMap) -> Result<Option<BorrowId>, Status> {
    let Some(value) = metadata.get(BORROW_ID) else { return Ok(None) };
    // A value that is not text becomes the empty text, which is invalid too.
    value.to_str().unwrap_or_default().parse().map(Some).map_err(invalid)
}

/// Fills in the default organization where a request names none.
fn fill_in_organization(live: &Live, organization: &mut String) -> Result<(), Status> {
    if organization.is_empty() {
        *organization = live.organization("").map_err(invalid)?.to_owned();
    }
    Ok(())
}

fn invalid(invalid: Invalid) -> Status {
    Status::invalid_argument(invalid.to_string())
}

/// The status of a call that the store does not answer. Its source tells whether this server does not
/// lead its fleet.
fn unavailable(error: Unavailable) -> Status {
    let mut status = Status::unavailable(error.to_string());
    if error.is_for_the_leader() {
        status.set_source(Arc::new(error));
    }
    status
}

/// The status of a revoked lease, and of a borrow whose lease would be revoked at once.
fn revoked(reason: Reason, message: String) -> Status {
    match reason {
        Reason::BudgetSpent => Status::resource_exhausted(message),
        Reason::Operator | Reason::OrganizationDisabled | Reason::ApiKeyDisabled => {
            Status::permission_denied(message)
        }
    }
}

/// The status of a request that the policy refuses.
fn refuse(refused: &Refused) -> Status {
    match refused {
        Refused::UnknownService(_) => Status::invalid_argument(format!("service: {refused}")),
        Refused::ServiceNotAllowed { .. } => Status::permission_denied(refused.to_string()),
        Refused::Disabled(reason) => revoked(*reason, reason.to_string()),
    }
}

/// The status of a borrow that the ledger refuses, except because of a limit.
fn refused_borrow(refusal: &Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::BudgetSpent(_) => Status::resource_exhausted(message),
        Refusal::Revoked(why) => revoked(why.reason, message),
        Refusal::BorrowIdReused => Status::invalid_argument(message),
        Refusal::BorrowEnded => Status::cancelled(message),
        // The borrow was not decided, so the caller may try again. A limit is answered elsewhere.
        Refusal::Full { .. }
        | Refusal::IdsFull { .. }
        | Refusal::TooManyServices { .. }
        | Refusal::MemoryFull(_)
        | Refusal::OldTerms
        | Refusal::Behind
        | Refusal::Denied(_) => Status::unavailable(message),
    }
}
