//! The gRPC service `example.v1.Blocks`: what `tonic-prost-build` would generate from its .proto
//! file, written out so that the example needs no build script.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::server::NamedService;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

const STREAM: &str = "/example.v1.Blocks/Stream";
const HEAD: &str = "/example.v1.Blocks/Head";

/// Which blocks a stream sends.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Range {
    /// The number of the first block.
    #[prost(uint64, tag = "1")]
    pub(crate) first: u64,
    /// How many blocks; 0 means that the stream never ends.
    #[prost(uint64, tag = "2")]
    pub(crate) count: u64,
}

/// One block.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Block {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
}

/// The blocks of one stream.
pub(crate) type BlockStream = Pin<Box<dyn Stream<Item = Result<Block, Status>> + Send>>;

/// What a server of the service implements.
pub(crate) trait Blocks: Send + Sync + 'static {
    /// Streams blocks in order.
    fn stream(
        &self,
        request: Request<Range>,
    ) -> impl Future<Output = Result<Response<BlockStream>, Status>> + Send;

    /// Returns the newest block.
    fn head(
        &self,
        request: Request<()>,
    ) -> impl Future<Output = Result<Response<Block>, Status>> + Send;
}

/// Serves an implementation over gRPC.
#[derive(Debug)]
pub(crate) struct BlocksServer<T>(Arc<T>);

impl<T> BlocksServer<T> {
    /// Serves `blocks`.
    pub(crate) fn new(blocks: T) -> Self {
        Self(Arc::new(blocks))
    }
}

impl<T> Clone for BlocksServer<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> NamedService for BlocksServer<T> {
    const NAME: &'static str = "example.v1.Blocks";
}

impl<T: Blocks> tower::Service<http::Request<Body>> for BlocksServer<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let blocks = self.0.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                STREAM => {
                    let stream = tower::service_fn(|request| {
                        let blocks = blocks.clone();
                        async move { blocks.stream(request).await }
                    });
                    tonic::server::Grpc::new(ProstCodec::default())
                        .server_streaming(stream, request)
                        .await
                }
                HEAD => {
                    let head = tower::service_fn(|request| {
                        let blocks = blocks.clone();
                        async move { blocks.head(request).await }
                    });
                    tonic::server::Grpc::new(ProstCodec::default()).unary(head, request).await
                }
                _ => Status::unimplemented("the service has no such method").into_http(),
            })
        })
    }
}

/// Calls the service.
#[derive(Clone, Debug)]
pub(crate) struct BlocksClient<C>(tonic::client::Grpc<C>);

impl<C> BlocksClient<C>
where
    C: GrpcService<Body>,
    C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::ResponseBody: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Calls it over `channel`.
    pub(crate) fn new(channel: C) -> Self {
        Self(tonic::client::Grpc::new(channel))
    }

    /// Streams blocks in order.
    pub(crate) async fn stream(
        &mut self,
        request: Request<Range>,
    ) -> Result<Response<Streaming<Block>>, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static(STREAM);
        self.0.server_streaming(request, path, ProstCodec::default()).await
    }

    /// Returns the newest block.
    pub(crate) async fn head(&mut self, request: Request<()>) -> Result<Response<Block>, Status> {
        self.ready().await?;
        self.0.unary(request, PathAndQuery::from_static(HEAD), ProstCodec::default()).await
    }

    async fn ready(&mut self) -> Result<(), Status> {
        self.0.ready().await.map_err(|error| Status::from_error(error.into()))
    }
}
