//! Calls of the gRPC port, by method: how long they take, and which are refused.

use std::time::Instant;

use http::HeaderMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use tonic::{Code, Status};

use super::latency::Latency;

/// What is called. Everything that is no method of this port is [`Method::Other`].
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
    /// Those that are answered, in the order of their numbers.
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabel {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    method: &'static str,
    code: &'static str,
}

/// How calls went, whatever they were about.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    durations: [Latency; Method::ANSWERED.len()],
    refused: Family<RefusedLabels, Counter>,
}

impl Calls {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let durations = Family::<MethodLabel, Latency>::default();
        let refused = Family::<RefusedLabels, Counter>::default();
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
        let duration = |method: Method| {
            durations.get_or_create_owned(&MethodLabel { method: method.as_str() })
        };
        Self { durations: Method::ANSWERED.map(duration), refused }
    }

    /// Counts a call that was answered now, well or not.
    pub(crate) fn answered(&self, method: Method, began: Instant) {
        if let Some(duration) = self.durations.get(method as usize) {
            duration.observe(began.elapsed());
        }
    }

    /// Counts a call that is refused with this status.
    pub(crate) fn refused(&self, method: Method, status: &Status) {
        self.refused_with(method, status.code());
    }

    /// Counts a call whose answer has these headers, if it is a refusal.
    pub(crate) fn refused_by(&self, method: Method, answer: &HeaderMap) {
        if let Some(status) = answer.get("grpc-status") {
            self.refused_with(method, Code::from_bytes(status.as_bytes()));
        }
    }

    fn refused_with(&self, method: Method, code: Code) {
        let labels = RefusedLabels { method: method.as_str(), code: name(code) };
        self.refused.get_or_create(&labels).inc();
    }
}

/// The name of a code as the protocol writes it.
const fn name(code: Code) -> &'static str {
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
