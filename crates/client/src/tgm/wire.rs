//! What a pool asks its session server on the wire, and what the answers mean.
//!
//! A server may be old, broken, or not a session server at all; and the transport makes up
//! statuses of its own. Only a status that the server itself sent ends a session or refuses a
//! borrow: a refused HTTP/2 stream must not look like a spent budget.

use std::error::Error as _;
use std::fmt;
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

/// Who this is, to a server that counts its clients.
const AGENT: &str = concat!("tgm-session/", env!("CARGO_PKG_VERSION"));

/// The session server of one pool.
///
/// A call takes as long as the server does, and is cancelled when it is dropped. Its error is the
/// status that the server answered; or one with a source when no whole answer came, which is
/// [`NotConnected`] when nothing can have been sent.
pub(crate) struct Remote {
    connection: Connection,
    origin: Uri,
    borrow: Uri,
    keep_alive: Uri,
    give_back: Uri,
    state: Uri,
    /// What every unary call carries.
    headers: HeaderMap,
    key: ApiKey,
}

impl Remote {
    /// The server at `origin`, to which every call shows `key`.
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

    /// Borrows what is `asked` under the name `id`.
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
        // A life that no wire duration can hold is longer than any server grants.
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

    /// Asks what an organization holds of a service.
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

    /// The client of the stream of keep-alives.
    pub(crate) fn control(&self) -> SessionControlClient<Connection> {
        SessionControlClient::with_origin(self.connection.clone(), self.origin.clone())
    }

    /// Wraps what is sent on the stream with what every call carries.
    pub(crate) async fn stream<T>(&self, messages: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(messages);
        if let Some(key) = self.key.present().await.key {
            request.metadata_mut().as_mut().insert(API_KEY, key);
        }
        request
    }

    /// Makes a call; once more when the server refuses a key that was replaced meanwhile.
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
            request.headers_mut().insert(BORROW_ID, named(id));
        }
        request
    }
}

impl fmt::Debug for Remote {
    /// Shows no address: it may have come out of a variable.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("key", &self.key).finish_non_exhaustive()
    }
}

/// The metadata value that names a borrow.
fn named(BorrowId(id): BorrowId) -> HeaderValue {
    let mut digits = [0; 32];
    hex::encode_to_slice(id.to_be_bytes(), &mut digits).expect("there are two digits to a byte");
    let mut value = HeaderValue::from_bytes(&digits).expect("hex digits are a header value");
    // Whoever knows it can return the lease. And no table of headers needs what is used once.
    value.set_sensitive(true);
    value
}

// ---- answers ----

/// Most bytes of a server's message that are kept.
const LONGEST_MESSAGE: usize = 1024;

/// Reads the answer to a borrow of what was `asked`.
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
                // It is the session that is not found.
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
        // What a session is told by UNAVAILABLE: it says nothing of the ceilings, and not for sure that
        // nothing is held.
        (BorrowStatus::ResourceExhausted, None)
            if metadata.get("x-denied-scope").is_some_and(|scope| scope == "server") =>
        {
            let error = Error::unavailable("the server cannot decide now");
            BorrowAnswer::Fault { error, sent: true }
        }
        (BorrowStatus::ResourceExhausted, key) => {
            let error = ceiling(&metadata, &body.worker_state.unwrap_or_default(), asked);
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
            // Some servers answer OK and nothing more; a status that is not known here reads as unset.
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
        // As with keep-alives: some servers answer OK and nothing more.
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

/// Reads a status that answers a question.
pub(crate) fn error(status: &Status) -> Error {
    Failure::of(status).error
}

/// What a gRPC status means.
struct Failure {
    error: Error,
    /// Whether the next try may bring another answer.
    fault: bool,
    /// Whether the call may have reached the server.
    sent: bool,
    /// Whether it is the server's own.
    by_server: bool,
}

impl Failure {
    fn of(status: &Status) -> Self {
        // A status with a source was made up on this side of the wire.
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
            // Wrong server or wrong path among them: asking again gives the same answer.
            _ => Error::unavailable(describe(status)),
        };
        Self { error, fault: is_fault(status.code()), sent: true, by_server: true }
    }
}

/// What to change in the session URL when one end speaks TLS and the other does not.
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

/// Whether a server that answers `code` may answer otherwise a moment later.
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

/// The ceiling that an answer of status `resource_exhausted` names.
fn ceiling(metadata: &MetadataMap, state: &WorkersState, asked: &Asked) -> Error {
    let number = |name| metadata.get(name)?.to_str().ok()?.parse::<u64>().ok();
    let stated = number("x-denied-active").zip(number("x-denied-max"));
    let scope =
        metadata.get("x-denied-scope").and_then(|name| Scope::from_wire(name.to_str().ok()?));
    // A server without the metadata leaves it to the client to see which ceiling it was.
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

/// The TTL a server told, if it makes sense.
fn read_ttl(metadata: &MetadataMap) -> Option<Duration> {
    let millis =
        metadata.get("x-lease-ttl-ms")?.to_str().ok()?.parse().ok().filter(|ms| *ms > 0)?;
    Some(Duration::from_millis(millis).min(MAX_TTL))
}

/// What a status says, with what caused it.
fn describe(status: &Status) -> String {
    let mut text = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    let mut cause = status.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    clip(&text)
}

/// The cause of a status that is an `E`.
pub(crate) fn cause<E: std::error::Error + 'static>(status: &Status) -> Option<&E> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

pub(crate) fn clip(message: &str) -> String {
    message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned()
}

#[cfg(test)]
mod tests;
