//! An old session server, without `SessionControl`. It answers calls of `SessionControl` with
//! `UNIMPLEMENTED`, and forwards all other calls to the real server.

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Status;
use tonic::transport::Channel;
use tower::{ServiceExt as _, service_fn};

/// The path of the service that the old server does not have.
const UNKNOWN: &str = "/tgm.session.v1.SessionControl/";

/// Serves one connection of a client until it ends, with the answers of `server`.
pub(crate) async fn serve<I>(client: I, server: Channel)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: http::Request<_>| {
        let server = server.clone();
        async move {
            if request.uri().path().starts_with(UNKNOWN) {
                return Ok(Status::unimplemented("there is no such service").into_http());
            }
            server.oneshot(request.map(tonic::body::Body::new)).await
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    let service = TowerToHyperService::new(service);
    // It ends when the client disconnects, with or without an error.
    let _ = builder.serve_connection(TokioIo::new(client), service).await;
}
