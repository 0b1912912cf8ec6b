//! Calls of the gRPC port by method: their durations and their refusals.

use std::time::Instant;

use http::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use tonic::{Code, Status};

use super::Labels;
use super::latency::Latency;

/// The method of a call. A method that this port does not have is [`Method::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    BorrowWorker,
    KeepAlive,
    ReturnWorker,
    WorkersState,
    Report,
    /// One batch of keep-alives, or a stream that is refused.
    Attach,
    Other,
}

impl Method {
    /// The methods that are answered, in the order of their discriminants.
    const ANSWERED: [Self; 6] = [
        Self::BorrowWorker,
        Self::KeepAlive,
        Self::ReturnWorker,
        Self::WorkersState,
        Self::Report,
        Self::Attach,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::BorrowWorker => "BorrowWorker",
            Self::KeepAlive => "KeepAlive",
            Self::ReturnWorker => "ReturnWorker",
            Self::WorkersState => "WorkersState",
            Self::Report => "Report",
            Self::Attach => "Attach",
            Self::Other => "other",
        }
    }
}

/// The durations and refusals of calls.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    durations: [Latency; Method::ANSWERED.len()],
    refused: Family<Labels<2>, Counter>,
}

impl Calls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let durations = Family::<Labels<1>, Latency>::default();
        let refused = Family::<Labels<2>, Counter>::default();
        registry.register_with_unit(
            "call_duration",
            "From a whole message to its answer, by method; of Attach, one batch",
            Unit::Seconds,
            durations.clone(),
        );
        registry.register(
            "calls_refused",
            "Calls that ended with a gRPC status other than OK, by method and code",
            refused.clone(),
        );
        let duration =
            |method: Method| durations.get_or_create_owned(&[("method", method.as_str())]);
        Self { durations: Method::ANSWERED.map(duration), refused }
    }

    /// Counts a call that is answered now, successfully or not.
    pub(crate) fn answered(&self, method: Method, began: Instant) {
        if let Some(duration) = self.durations.get(method as usize) {
            duration.observe(began.elapsed());
        }
    }

    /// Counts a call that is refused with this status.
    pub(crate) fn refused(&self, method: Method, status: &Status) {
        self.count_refusal(method, status.code());
    }

    /// Counts a call whose answer has these headers, if they contain a status other than OK.
    pub(crate) fn refused_by(&self, method: Method, answer: &HeaderMap) {
        if let Some(status) = answer.get("grpc-status") {
            self.count_refusal(method, Code::from_bytes(status.as_bytes()));
        }
    }

    fn count_refusal(&self, method: Method, code: Code) {
        let labels = [("method", method.as_str()), ("code", code_name(code))];
        self.refused.get_or_create(&labels).inc();
    }
}

/// The name of a code as the protocol writes it.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
