//! Requests of operators that are passed on to the leader.

use std::net::SocketAddr;

use bytes::Bytes;
use connect::grpc::BothWays;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Request, Response};
use http_body_util::Full;
use store::fleet::Leader;
use tonic::Status;
use tower::Service as _;

use super::headers::passed_on;
use super::routing::{Fleet, Patience, no_leader};
use crate::headers::FLEET_NOT_LEADING;

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
        let mut patience = Patience::new(None);
        loop {
            let Some(leader) = self.route(&mut patience).await? else { return Ok(None) };
            let answer = self.request(&leader, head, body.clone(), peer).await?;
            if !answer.headers().contains_key(FLEET_NOT_LEADING) {
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
        let path = head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut request = Request::new(tonic::body::Body::new(Full::new(body)));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = self.uri(leader, path)?;
        *request.headers_mut() = passed_on(&head.headers);
        if let Some(kind) = head.headers.get(CONTENT_TYPE) {
            request.headers_mut().insert(CONTENT_TYPE, kind.clone());
        }
        // The token is that of this server, which has checked it.
        request.headers_mut().remove(AUTHORIZATION);
        self.add_origin(request.headers_mut(), leader, Some(peer), None);
        self.forwarded.inc();
        self.connection(leader)?.call(request).await
    }
}
