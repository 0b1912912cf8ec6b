//! What a pool asks its session server, on the wire.

use std::fmt;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http::{Method, Request, Uri, Version};
use lease::BorrowId;
use prost::Message;
use tonic::{Code, Response, Status};
use wire::control::session_control_client::SessionControlClient;
use wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, KeepAliveResponse,
    ReturnWorkerRequest, ReturnWorkerResponse, WorkersStateRequest, WorkersStateResponse,
};

use super::api_key::{ApiKey, Shown};
use super::connection::Connection;
use super::core::{Asked, Target};
use super::unary;

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const BORROW_ID: HeaderName = HeaderName::from_static("x-borrow-id");

/// Who this is, to a server that counts its clients.
const AGENT: &str = concat!("tgm-session/", env!("CARGO_PKG_VERSION"));

/// The session server of one pool.
///
/// A call takes as long as the server does, and is cancelled when it is dropped. Its error is the
/// status that the server answered; or one with a source when no whole answer came, which is
/// [`NotConnected`](super::connection::NotConnected) when nothing can have been sent.
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
            max_worker_for_trace_id: asked.max_workers,
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
        let answer = unary::call(&self.connection, request, message).await;
        match &answer {
            Err(status) if status.code() == Code::Unauthenticated => {}
            _ => return answer,
        }
        let Some(other) = self.key.instead_of(&shown).await else { return answer };
        unary::call(&self.connection, self.request(method, borrow, &other), message).await
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
