//! Determines the method and the protocol of a request.

use http::header::CONTENT_TYPE;
use http::{Method as HttpMethod, Request, StatusCode, Version};
use tokio::sync::Semaphore;
use wire::control::session_control_server::SERVICE_NAME as SESSION_CONTROL;
use wire::payment::usage_service_server::SERVICE_NAME as USAGE_SERVICE;

use crate::bounds::Share;
use crate::metrics::Method;

/// The path of reports of usage.
pub(super) const REPORT: &str = "/sf.gateway.payment.v1.UsageService/Report";

/// The gRPC service of the worker pool.
pub(crate) const WORKER_POOL: &str = "sf.worker.v1.WorkerPool";

/// One call of the worker pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PoolCall {
    BorrowWorker,
    KeepAlive,
    ReturnWorker,
    WorkersState,
}

impl PoolCall {
    pub(super) fn at(path: &str) -> Option<Self> {
        match path.strip_prefix('/')?.strip_prefix(WORKER_POOL)? {
            "/BorrowWorker" => Some(Self::BorrowWorker),
            "/KeepAlive" => Some(Self::KeepAlive),
            "/ReturnWorker" => Some(Self::ReturnWorker),
            "/WorkersState" => Some(Self::WorkersState),
            _ => None,
        }
    }
}

impl PoolCall {
    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::BorrowWorker => "/sf.worker.v1.WorkerPool/BorrowWorker",
            Self::KeepAlive => "/sf.worker.v1.WorkerPool/KeepAlive",
            Self::ReturnWorker => "/sf.worker.v1.WorkerPool/ReturnWorker",
            Self::WorkersState => "/sf.worker.v1.WorkerPool/WorkersState",
        }
    }

    /// Whether the call needs a place of its caller. A keep-alive never waits.
    pub(super) const fn needs_place(self) -> bool {
        !matches!(self, Self::KeepAlive)
    }

    /// The places of its caller for this call, if it needs one.
    pub(super) const fn places(self, share: &Share) -> Option<&Semaphore> {
        match self {
            Self::BorrowWorker | Self::ReturnWorker => Some(share.changes()),
            Self::WorkersState => Some(share.reads()),
            Self::KeepAlive => None,
        }
    }
}

impl From<PoolCall> for Method {
    fn from(call: PoolCall) -> Self {
        match call {
            PoolCall::BorrowWorker => Self::BorrowWorker,
            PoolCall::KeepAlive => Self::KeepAlive,
            PoolCall::ReturnWorker => Self::ReturnWorker,
            PoolCall::WorkersState => Self::WorkersState,
        }
    }
}

/// The method that a call is counted as.
pub(super) fn method_of(call: Option<PoolCall>, path: &str) -> Method {
    match call {
        Some(call) => call.into(),
        None if is_report(path) => Method::Report,
        None if is_of(SESSION_CONTROL, path) => Method::Attach,
        None => Method::Other,
    }
}

/// Whether `path` names a method of `service`.
pub(super) fn is_of(service: &str, path: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
    method.is_some_and(|method| method.starts_with('/'))
}

pub(super) fn is_report(path: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(USAGE_SERVICE)) == Some("/Report")
}

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    Web,
    /// Another protocol, which is refused with this HTTP status.
    Unsupported(StatusCode),
}

impl Protocol {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let content_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], |it| it.as_bytes());
        let kind = content_type.strip_prefix(b"application/grpc");
        if request.method() != HttpMethod::POST {
            return match *request.method() {
                // The CORS preflight of a browser.
                HttpMethod::OPTIONS => Self::Web,
                _ => Self::Unsupported(StatusCode::METHOD_NOT_ALLOWED),
            };
        }
        match kind {
            Some([] | [b'+' | b';', ..]) if request.version() == Version::HTTP_2 => Self::Grpc,
            // gRPC sends the status in trailers, which need HTTP/2.
            Some([] | [b'+' | b';', ..]) => {
                Self::Unsupported(StatusCode::HTTP_VERSION_NOT_SUPPORTED)
            }
            Some(b"-web" | b"-web+proto" | b"-web-text" | b"-web-text+proto") => Self::Web,
            _ => Self::Unsupported(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        }
    }
}
