//! A real session server, a pool of it, and a tonic service behind the layer, all over TCP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tgm_session::{Pool, Session, SessionLayer};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy, Running, Server};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::blocks::{Block, BlockStream, Blocks, BlocksClient, BlocksServer, Range};

/// Allows two sessions of an organization at once. A slot is free as soon as its session is
/// returned.
pub(crate) const POLICY: &str = r#"
    [services.t1r]
    max_per_organization = 2
    minimal_life = "0s"
    [services.t2w]
    max_per_organization = 50
    minimal_life = "0s"
    [organizations.gone]
    disabled = true
"#;

const SOON: Duration = Duration::from_secs(40);

/// A session server in this process.
pub(crate) struct Sessions(Running);

impl Sessions {
    pub(crate) async fn start() -> Self {
        Self::with(POLICY).await
    }

    pub(crate) async fn with(policy: &str) -> Self {
        let policy = Policy::parse(policy, "test.toml").unwrap().policy;
        let mut config = Config::new(policy, StoreUrl::Memory);
        config.listen.set_port(0);
        config.admin_listen.set_port(0);
        config.threads = 1;
        Self(Server::bind(config).await.unwrap().start().await.unwrap())
    }

    pub(crate) async fn pool(&self, parameters: &str) -> Pool {
        let address = self.0.grpc_address();
        let url =
            format!("tgm://{address}?plaintext=true&request-keep-alive-delay=50ms&{parameters}");
        tgm_session::connect(&url).await.unwrap()
    }

    /// How many leases of the service the server counts now.
    pub(crate) async fn count(&self, service: &str) -> u64 {
        let live = self.0.store().live().await.unwrap();
        live.iter().find(|(name, _)| &**name == service).map_or(0, |(_, count)| *count)
    }

    /// Waits until the server counts `expected` sessions.
    pub(crate) async fn until(&self, expected: u64) {
        let reached = async {
            while self.count("t1r").await != expected {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if soon(reached).await.is_none() {
            panic!("{} sessions and not {expected}", self.count("t1r").await);
        }
    }

    /// Disables the organization `acme` as an operator does, which ends all its sessions.
    pub(crate) async fn disable_acme(&self) {
        let policy = format!("{POLICY}\n[organizations.acme]\ndisabled = true\n");
        let policy = Policy::parse(&policy, "test.toml").unwrap().policy;
        assert!(self.0.set_policy(policy).await.unwrap() > 0, "nothing was revoked");
    }
}

/// Waits for a future with a timeout, and returns `None` when the timeout has passed.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(SOON, future).await.ok()
}

/// Starts a gRPC server of `blocks` behind `layer`, with gRPC health beside it.
pub(crate) async fn serve(layer: SessionLayer, blocks: impl Blocks) -> Channel {
    let (_, health) = tonic_health::server::health_reporter();
    let (address, listener) = listen().await;
    let server = tonic::transport::Server::builder()
        .layer(layer)
        .add_service(BlocksServer::new(blocks))
        .add_service(health)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

pub(crate) async fn listen() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener)
}

pub(crate) fn client(channel: &Channel) -> BlocksClient<Channel> {
    BlocksClient::new(channel.clone())
}

/// Wraps a message in a request with the header that an authenticating proxy adds.
pub(crate) fn of<T>(organization: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-organization-id", organization.parse().unwrap());
    request
}

pub(crate) const ENDLESS: Range = Range { first: 1, count: 0 };

pub(crate) const NEVER: fn() -> BlockStream = || Box::pin(tokio_stream::pending());

/// A service that calls the function of a test for each request.
pub(crate) struct Told<F>(pub(crate) F);

impl<F, R> Blocks for Told<F>
where
    F: Fn(Arc<Session>, Range) -> R + Send + Sync + 'static,
    R: Future<Output = Result<BlockStream, Status>> + Send,
{
    async fn stream(&self, request: Request<Range>) -> Result<Response<BlockStream>, Status> {
        let session = request.extensions().get::<Arc<Session>>().unwrap().clone();
        (self.0)(session, request.into_inner()).await.map(Response::new)
    }

    async fn head(&self, request: Request<()>) -> Result<Response<Block>, Status> {
        let session = request.extensions().get::<Arc<Session>>().unwrap().clone();
        let _stream = (self.0)(session, Range { first: 7, count: 1 }).await?;
        Ok(Response::new(Block { number: 7 }))
    }
}

/// A service that sends the requested blocks as fast as the client reads them.
pub(crate) fn busy() -> impl Blocks {
    Told(async |_: Arc<Session>, Range { first, count }| {
        let end = if count == 0 { u64::MAX } else { first + count };
        let blocks = (first..end).map(|number| Ok(Block { number }));
        Ok(Box::pin(tokio_stream::iter(blocks)) as BlockStream)
    })
}
