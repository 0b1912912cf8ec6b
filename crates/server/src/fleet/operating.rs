//! Requests of operators that are passed on to the leader.

use std::net::SocketAddr;

use bytes::Bytes;
use connect::grpc::BothWays;
use http::request::Parts;
use http::{Request, Response, Uri};
use http_body_util::Full;
use store::fleet::Leader;
use tonic::Status;
use tower::Service as _;

use super::headers::{NOT_LEADING, passed_on};
use super::routing::{Fleet, Patience, Route, no_leader};

impl Fleet {
    /// Passes a request of an operator from `peer` on to the leader, and returns its answer as it is;
    /// `None` when this server leads.
    ///
    /// # Errors
    ///
    /// `UNAVAILABLE` when no server leads or it does not answer. What was asked may have been done.
    pub(crate) async fn pass_on_request(
        &self,
        head: &Parts,
        body: Bytes,
        peer: SocketAddr,
    ) -> Result<Option<Response<BothWays>>, Status> {
        let patience = Patience::new(None);
        loop {
            let leader = match self.route(&patience).await {
                None => return Err(no_leader()),
                Some(Route::Here) => return Ok(None),
                Some(Route::To(leader)) => leader,
            };
            let answer = self.request(&leader, head, body.clone(), peer).await?;
            if !answer.headers().contains_key(NOT_LEADING) {
                return Ok(Some(answer));
            }
            if !patience.wait().await {
                return Err(no_leader());
            }
        }
    }

    async fn request(
        &self,
        leader: &Leader,
        head: &Parts,
        body: Bytes,
        peer: SocketAddr,
    ) -> Result<Response<BothWays>, Status> {
        let mut connection = self.connection(leader).map_err(unreachable)?;
        let mut uri = self.uri(leader)?.into_parts();
        uri.path_and_query = head.uri.path_and_query().cloned();
        let mut request = Request::new(tonic::body::Body::new(Full::new(body)));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = Uri::from_parts(uri).map_err(unreachable)?;
        *request.headers_mut() = passed_on(&head.headers);
        if let Some(kind) = head.headers.get(http::header::CONTENT_TYPE) {
            request.headers_mut().insert(http::header::CONTENT_TYPE, kind.clone());
        }
        // The token is that of this server, which has checked it.
        request.headers_mut().remove(http::header::AUTHORIZATION);
        self.add_origin(request.headers_mut(), leader, Some(peer), None);
        self.forwarded.inc();
        connection.call(request).await
    }
}

fn unreachable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("the leader of the fleet cannot be reached: {error}"))
}
