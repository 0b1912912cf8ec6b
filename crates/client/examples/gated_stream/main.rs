//! A tonic streaming service that is gated in one line, and a client whose streams are granted, refused
//! and revoked.
//!
//! A session server, the service and the client run in this process, over TCP on free ports.
//! `cargo run -p tgm-session --example gated_stream`

mod blocks;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tgm_session::{Session, SessionLayer};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy, Running, Server};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use blocks::{Block, BlockStream, Blocks, BlocksClient, BlocksServer, Range};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The policy of the session server: two streams of an organization at once.
const POLICY: &str = r#"
[services.blocks]
max_per_organization = 2
minimal_life = "0s"

[services.jobs]
max_per_organization = 10
minimal_life = "0s"
"#;

/// The streaming service itself. It knows nothing about limits.
struct Chain;

impl Blocks for Chain {
    async fn stream(&self, request: Request<Range>) -> Result<Response<BlockStream>, Status> {
        // The session of this stream. It borrows workers, and says why it ended.
        let session = request.extensions().get::<Arc<Session>>().cloned();
        let session = session.ok_or_else(|| Status::internal("the service is not gated"))?;
        let worker = session.borrow_worker("jobs", 4).await?;

        let Range { first, .. } = request.into_inner();
        let blocks = tokio_stream::iter(first..).map(move |number| {
            let _held = &worker; // held as long as the stream
            Ok(Block { number })
        });
        Ok(Response::new(Box::pin(blocks.throttle(Duration::from_millis(5)))))
    }

    async fn head(&self, _: Request<()>) -> Result<Response<Block>, Status> {
        Ok(Response::new(Block { number: 23_000_000 }))
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let sessions = session_server().await?;
    let url =
        format!("tgm://{}?plaintext=true&request-keep-alive-delay=250ms", sessions.grpc_address());
    let pool = tgm_session::connect(&url).await?;

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let service = format!("http://{}", listener.local_addr()?);
    let server = tonic::transport::Server::builder()
        .layer(SessionLayer::new(pool.clone(), "blocks")) // the one line
        .add_service(BlocksServer::new(Chain))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(server);

    let story = story(&sessions, Endpoint::from_shared(service)?.connect_lazy());
    timeout(Duration::from_secs(30), story).await??;

    let report = pool.close(Duration::from_secs(5)).await;
    check(report.not_returned == 0 && live(&sessions).await? == 0, "nothing is left behind")?;
    server.abort();
    sessions.stop().await?;
    Ok(())
}

/// The client of the service.
async fn story(sessions: &Running, channel: Channel) -> Outcome<()> {
    let mut acme = BlocksClient::new(channel);

    let head = acme.head(from("acme", ())).await?.into_inner();
    println!(
        "acme asks for the newest block, {}; the session is returned with the answer",
        head.number
    );
    while live(sessions).await? > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let mut one = acme.stream(from("acme", Range { first: 100, count: 0 })).await?.into_inner();
    let mut two = acme.stream(from("acme", Range { first: 500, count: 0 })).await?.into_inner();
    println!("acme streams twice: blocks {} and {}", next(&mut one).await?, next(&mut two).await?);
    check(live(sessions).await? == 4, "two sessions and their workers are counted")?;
    println!("  the session server counts 4 leases: two sessions and a worker under each");

    let refused = acme.stream(from("acme", Range::default())).await.err();
    let refused = refused.ok_or("a third stream was admitted")?;
    check(refused.code() == Code::ResourceExhausted, "a third stream is refused")?;
    println!("acme asks for a third stream: {:?}, {}", refused.code(), refused.message());

    drop(two);
    let mut three = loop {
        match acme.stream(from("acme", Range { first: 900, count: 0 })).await {
            Ok(three) => break three.into_inner(),
            // The server notices the disconnected client a moment later.
            Err(status) if status.code() == Code::ResourceExhausted => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(status) => return Err(status.into()),
        }
    };
    println!(
        "acme leaves one stream and uses its slot for another: block {}",
        next(&mut three).await?
    );

    let stranger = acme.stream(Request::new(Range::default())).await.err();
    let stranger = stranger.ok_or("a stream without an organization was admitted")?;
    check(stranger.code() == Code::Unauthenticated, "a stranger is refused")?;
    println!("a caller without an organization: {:?}", stranger.code());

    let disabled = format!("{POLICY}\n[organizations.acme]\ndisabled = true\n");
    sessions.set_policy(Policy::parse(&disabled, "disabled.toml")?.policy).await?;
    println!("an operator disables acme, and both streams end:");
    for stream in [&mut one, &mut three] {
        let (blocks, revoked) = rest(stream).await?;
        check(revoked.code() == Code::PermissionDenied, "a revoked stream says why")?;
        println!("  {blocks} more blocks, then {:?}, {}", revoked.code(), revoked.message());
    }
    Ok(())
}

/// Starts a session server in this process. In production it is a process of its own: `tgm-session serve`.
async fn session_server() -> Outcome<Running> {
    let policy = Policy::parse(POLICY, "policy.toml")?.policy;
    let mut config = Config::new(policy, StoreUrl::Memory);
    config.listen.set_port(0);
    config.admin_listen.set_port(0);
    Ok(Server::bind(config).await?.start().await?)
}

/// Returns how many leases the session server counts.
async fn live(sessions: &Running) -> Outcome<u64> {
    Ok(sessions.store().live().await?.iter().map(|(_, leases)| leases).sum())
}

/// Adds the header that an authenticating proxy adds for an organization.
fn from<T>(organization: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-organization-id", organization.parse().expect("it is ASCII"));
    request
}

async fn next(stream: &mut Streaming<Block>) -> Outcome<u64> {
    Ok(stream.message().await?.ok_or("the stream ended")?.number)
}

/// Reads until the stream fails. Returns the number of blocks and the status.
async fn rest(stream: &mut Streaming<Block>) -> Outcome<(u64, Status)> {
    let mut blocks = 0;
    loop {
        match stream.message().await {
            Ok(Some(_)) => blocks += 1,
            Ok(None) => return Err("the stream ended without an error".into()),
            Err(status) => return Ok((blocks, status)),
        }
    }
}

fn check(holds: bool, what: &str) -> Outcome<()> {
    if holds { Ok(()) } else { Err(format!("this is not true: {what}").into()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_runs() {
        super::main().unwrap();
    }
}
