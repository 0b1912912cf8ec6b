//! What a pool asks its session server on the wire, and what the answers mean.
//!
//! A server may be old, broken, or no session server at all. And the transport has statuses of its
//! own. Only a status that the server itself sent ends a session or refuses a borrow: a refused HTTP/2
//! stream must not look like a spent budget.

use std::error::Error as _;
use std::time::Duration;

use ::connect::{Connection, Mismatch, NotConnected, grpc};
use ::wire::control::session_control_client::SessionControlClient;
use ::wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, KeepAliveResponse,
    ReturnWorkerRequest, ReturnWorkerResponse, WorkersState, WorkersStateRequest,
    WorkersStateResponse, borrow_worker_response::BorrowStatus, keep_alive_response,
    return_worker_response,
};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, Uri, Version};
use lease::{BorrowId, MAX_TTL};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Code, Response, Status};

use super::core::{Asked, BorrowAnswer, DEFAULT_TTL, Grant, KeepAliveAnswer, ReturnAnswer, Target};
use crate::api_key::{ApiKey, Shown};
use crate::error::{Error, Scope};
use crate::held::Released;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const BORROW_ID: HeaderName = HeaderName::from_static("x-borrow-id");

/// The name of this client for the server.
const AGENT: &str = concat!("tgm-session/", env!("CARGO_PKG_VERSION"));

/// The session server of one pool.
///
/// A call has no deadline of its own, and is cancelled when it is dropped. Its error is the status
/// that the server answered. Without a complete answer the status has a source, which is
/// [`NotConnected`] if nothing was sent.
pub(crate) struct Remote {
    connection: Connection,
    origin: Uri,
    borrow: Uri,
    keep_alive: Uri,
    give_back: Uri,
    state: Uri,
    /// The headers of every unary call.
    headers: HeaderMap,
    key: ApiKey,
}

impl Remote {
    /// Makes the server at `origin`. Every call to it has `key`.
    pub(crate) fn new(connection: Connection, origin: Uri, key: ApiKey) -> Self {
        let method = |name| {
            let mut parts = origin.clone().into_parts();
            let path = format!("/sf.worker.v1.WorkerPool/{name}");
            parts.path_and_query = Some(path.parse().expect("it is the path of a method"));
            Uri::from_parts(parts).expect("an origin and a path are a URI")
        };
        let mut headers = HeaderMap::new();
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        Self {
            connection,
            borrow: method("BorrowWorker"),
            keep_alive: method("KeepAlive"),
            give_back: method("ReturnWorker"),
            state: method("WorkersState"),
            origin,
            headers,
            key,
        }
    }

    /// Borrows what is `asked` for under the borrow id `id`.
    pub(crate) async fn borrow(
        &self,
        asked: &Asked,
        id: BorrowId,
    ) -> Result<Response<BorrowWorkerResponse>, Status> {
        let message = BorrowWorkerRequest {
            service: asked.ids.service.to_string(),
            organization_id: asked.ids.organization.to_string(),
            api_key_id: asked.ids.api_key.to_string(),
            trace_id: asked.ids.trace.to_string(),
            max_worker_for_trace_id: asked.worker.map_or(0, |worker| worker.most),
        };
        self.call(&self.borrow, Some(id), &message).await
    }

    /// Keeps the lease with this key alive.
    pub(crate) async fn keep_alive(
        &self,
        key: &str,
        api_key: &str,
    ) -> Result<Response<KeepAliveResponse>, Status> {
        let message =
            KeepAliveRequest { worker_key: key.to_owned(), api_key_id: api_key.to_owned() };
        self.call(&self.keep_alive, None, &message).await
    }

    /// Returns a lease.
    pub(crate) async fn give_back(
        &self,
        target: &Target,
        minimal_life: Option<Duration>,
    ) -> Result<Response<ReturnWorkerResponse>, Status> {
        // A longer life than the longest that a server grants may not fit into a wire duration.
        let minimal_worker_life_duration = minimal_life.map(|life| {
            life.min(lease::MAX_MINIMAL_LIFE).try_into().expect("ten minutes fit a wire duration")
        });
        let (worker_key, borrow) = match target {
            Target::Key(key) => (key.to_string(), None),
            Target::Borrow(id) => (String::new(), Some(*id)),
        };
        let message = ReturnWorkerRequest { worker_key, minimal_worker_life_duration };
        self.call(&self.give_back, borrow, &message).await
    }

    /// Reads what an organization holds of a service.
    pub(crate) async fn state(
        &self,
        service: &str,
        organization: &str,
    ) -> Result<Response<WorkersStateResponse>, Status> {
        let message = WorkersStateRequest {
            service: service.to_owned(),
            organization_id: organization.to_owned(),
            api_key_id: String::new(),
        };
        self.call(&self.state, None, &message).await
    }

    /// Makes the client for the stream of keep-alives.
    pub(crate) fn control(&self) -> SessionControlClient<Connection> {
        SessionControlClient::with_origin(self.connection.clone(), self.origin.clone())
    }

    /// Makes the request that opens the stream and sends `messages` on it.
    pub(crate) async fn stream<T>(&self, messages: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(messages);
        if let Some(key) = self.key.present().await.key {
            request.metadata_mut().as_mut().insert(API_KEY, key);
        }
        request
    }

    /// Makes a call. It is made again when the server refuses a key that was replaced meanwhile.
    async fn call<A: Message + Default>(
        &self,
        method: &Uri,
        borrow: Option<BorrowId>,
        message: &impl Message,
    ) -> Result<Response<A>, Status> {
        let shown = self.key.present().await;
        let request = self.request(method, borrow, &shown);
        let answer = grpc::call(&self.connection, request, message).await;
        match &answer {
            Err(status) if status.code() == Code::Unauthenticated => {}
            _ => return answer,
        }
        let Some(other) = self.key.instead_of(&shown).await else { return answer };
        grpc::call(&self.connection, self.request(method, borrow, &other), message).await
    }

    fn request(&self, method: &Uri, borrow: Option<BorrowId>, shown: &Shown) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = method.clone();
        *request.headers_mut() = self.headers.clone();
        if let Some(key) = &shown.key {
            request.headers_mut().insert(API_KEY, key.clone());
        }
        if let Some(id) = borrow {
            request.headers_mut().insert(BORROW_ID, borrow_id_header(id));
        }
        request
    }
}

/// Writes a borrow id as a header.
fn borrow_id_header(BorrowId(id): BorrowId) -> HeaderValue {
    let mut digits = [0; 32];
    hex::encode_to_slice(id.to_be_bytes(), &mut digits).expect("there are two digits to a byte");
    let mut value = HeaderValue::from_bytes(&digits).expect("hex digits are a header value");
    // Whoever knows it can return the lease. And HPACK must not store a value that is used once.
    value.set_sensitive(true);
    value
}

// ---- answers ----

/// The most bytes that are kept of a message of the server.
const LONGEST_MESSAGE: usize = 1024;

/// Reads the answer to a borrow of what was `asked` for.
pub(crate) fn borrow(
    answer: Result<Response<BorrowWorkerResponse>, Status>,
    asked: &Asked,
) -> BorrowAnswer {
    let response = match answer {
        Ok(response) => response,
        Err(status) => {
            let cancelled = status.code() == Code::Cancelled;
            return match Failure::of(&status) {
                Failure { error, by_server: true, .. } if cancelled => BorrowAnswer::IdUsed(error),
                Failure { error, fault: true, sent, .. } => BorrowAnswer::Fault { error, sent },
                // The session is what was not found.
                _ if status.code() == Code::NotFound && asked.worker.is_some() => {
                    BorrowAnswer::Refused { error: Error::SessionNotFound, key: None }
                }
                Failure { error, .. } => BorrowAnswer::Refused { error, key: None },
            };
        }
    };
    let (metadata, body, _) = response.into_parts();
    let status = body.status();
    let key = Some(body.worker_key).filter(|key| !key.is_empty());
    match (status, key) {
        (BorrowStatus::Borrowed, Some(key)) => BorrowAnswer::Granted(Grant {
            key,
            ttl: read_ttl(&metadata).unwrap_or(DEFAULT_TTL),
            minimal_life: body.minimal_worker_life_duration.and_then(|life| life.try_into().ok()),
        }),
        // For a worker this stands for UNAVAILABLE: no limit was reached, and a lease may be held.
        (BorrowStatus::ResourceExhausted, None)
            if metadata.get("x-denied-scope").is_some_and(|scope| scope == "server") =>
        {
            let error = Error::unavailable("the server cannot decide now");
            BorrowAnswer::Fault { error, sent: true }
        }
        (BorrowStatus::ResourceExhausted, key) => {
            let error = reached_limit(&metadata, &body.worker_state.unwrap_or_default(), asked);
            BorrowAnswer::Refused { error, key }
        }
        (status, key) => {
            let with = if key.is_some() { "a key" } else { "no key" };
            let status = status.as_str_name();
            let error = Error::unavailable(format!(
                "a borrow was answered with status {status} and {with}"
            ));
            BorrowAnswer::Invalid { error, key }
        }
    }
}

/// Reads the answer to a keep-alive.
pub(crate) fn keep_alive(answer: Result<Response<KeepAliveResponse>, Status>) -> KeepAliveAnswer {
    match answer {
        Ok(response) => match response.get_ref().status() {
            keep_alive_response::Status::Failed => KeepAliveAnswer::Forgotten,
            // Some servers answer only OK. An unknown status reads as unset.
            keep_alive_response::Status::TtlExtended | keep_alive_response::Status::Unset => {
                KeepAliveAnswer::Extended(read_ttl(response.metadata()))
            }
        },
        Err(status) => match Failure::of(&status) {
            Failure {
                error: error @ (Error::PermissionDenied { .. } | Error::QuotaExceeded { .. }),
                ..
            } => KeepAliveAnswer::Revoked(error),
            Failure { by_server: true, .. } if status.code() == Code::NotFound => {
                KeepAliveAnswer::Forgotten
            }
            Failure { error, .. } => KeepAliveAnswer::Fault(error),
        },
    }
}

/// Reads the answer to a return.
pub(crate) fn give_back(answer: Result<Response<ReturnWorkerResponse>, Status>) -> ReturnAnswer {
    let status = match answer {
        Ok(response) => response.into_inner().status(),
        Err(status) => {
            let Failure { error, fault, by_server, .. } = Failure::of(&status);
            let hopeless = matches!(
                status.code(),
                Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented
            );
            let outcome = match status.code() {
                Code::NotFound if by_server => Ok(Released::Missing),
                _ => Err(error),
            };
            return ReturnAnswer { outcome, again: fault || !hopeless, answered: !fault };
        }
    };
    let outcome = match status {
        // As with keep-alives: some servers answer only OK.
        return_worker_response::Status::Returned | return_worker_response::Status::Unset => {
            Ok(Released::Returned)
        }
        return_worker_response::Status::TtlUpdated => Ok(Released::Lingers),
        return_worker_response::Status::MissingKey => Ok(Released::Missing),
        return_worker_response::Status::Failed => {
            Err(Error::unavailable("a return was answered with status failed"))
        }
    };
    ReturnAnswer { outcome, again: true, answered: true }
}

/// Reads the status of any other call.
pub(crate) fn error(status: &Status) -> Error {
    Failure::of(status).error
}

/// What a gRPC status means.
struct Failure {
    error: Error,
    /// Whether the next try may have another answer.
    fault: bool,
    /// Whether the call may have reached the server.
    sent: bool,
    /// Whether the server sent the status.
    by_server: bool,
}

impl Failure {
    fn of(status: &Status) -> Self {
        // A status with a source was made by the transport on this side.
        if status.source().is_some() {
            let not_connected = cause::<NotConnected>(status);
            let error = match not_connected {
                Some(NotConnected::Mismatch { server, mismatch }) => mismatched(server, *mismatch),
                _ => Error::unavailable(describe(status)),
            };
            let (error, sent) = (error.caused_by_status(status), not_connected.is_none());
            return Self { error, fault: true, sent, by_server: false };
        }
        let message = clip(status.message());
        let error = match status.code() {
            Code::Unauthenticated => Error::Unauthenticated { message },
            Code::PermissionDenied => Error::PermissionDenied { message },
            Code::ResourceExhausted => Error::QuotaExceeded { message },
            Code::InvalidArgument => Error::invalid(message),
            // Among them are a wrong server and a wrong path, where trying again does not help.
            _ => Error::unavailable(describe(status)),
        };
        Self { error, fault: is_fault(status.code()), sent: true, by_server: true }
    }
}

/// Says what to change in the session URL when one end speaks TLS and the other does not.
fn mismatched(server: &str, mismatch: Mismatch) -> Error {
    Error::invalid(match mismatch {
        Mismatch::Tls => format!(
            "the server at {server} speaks TLS: take `plaintext=true` out of the session URL"
        ),
        Mismatch::Plaintext => format!(
            "the server at {server} does not speak TLS: the session URL needs `plaintext=true`"
        ),
    })
}

/// Whether a server that answers `code` may have another answer a moment later.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::Internal
            | Code::Unknown
            | Code::DataLoss
    )
}

/// Reads the limit that an answer of status `resource_exhausted` names.
fn reached_limit(metadata: &MetadataMap, state: &WorkersState, asked: &Asked) -> Error {
    let number = |name| metadata.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let stated = number("x-denied-active").zip(number("x-denied-max"));
    let scope =
        metadata.get("x-denied-scope").and_then(|name| Scope::from_wire(name.to_str().ok()?));
    // Without the metadata the counts show which limit it was.
    let of_trace = state.worker_count_per_trace_id.get(&*asked.ids.trace).copied().unwrap_or(0);
    let (seen, counts) = match asked.worker {
        Some(worker) if of_trace >= worker.most => (Scope::Trace, (of_trace, worker.most)),
        _ => (Scope::Organization, (state.borrowed_workers, state.max_workers)),
    };
    let counted = |count| u64::try_from(count).unwrap_or(0);
    let seen_counts = || (counts.1 > 0).then(|| (counted(counts.0), counted(counts.1)));
    let (scope, (active, max)) = match stated.or_else(seen_counts) {
        Some(counts) => (scope.unwrap_or(seen), counts),
        None => (Scope::Unknown, (0, 0)),
    };
    if asked.worker.is_some() {
        Error::WorkersLimitExceeded { active, max, scope }
    } else {
        Error::ConcurrentStreamLimitExceeded { active, max, scope }
    }
}

/// Reads the TTL that the server says, if it is valid.
fn read_ttl(metadata: &MetadataMap) -> Option<Duration> {
    let millis =
        metadata.get("x-lease-ttl-ms")?.to_str().ok()?.parse().ok().filter(|ms| *ms > 0)?;
    Some(Duration::from_millis(millis).min(MAX_TTL))
}

/// Describes a status with its causes.
fn describe(status: &Status) -> String {
    let mut text = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    for cause in causes(status).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    clip(&text)
}

/// Finds the cause of a status that is an `E`.
pub(crate) fn cause<E: std::error::Error + 'static>(status: &Status) -> Option<&E> {
    causes(status).find_map(|cause| cause.downcast_ref())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}

pub(crate) fn clip(message: &str) -> String {
    message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned()
}

#[cfg(test)]
mod tests;
