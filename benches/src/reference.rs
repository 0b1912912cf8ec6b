//! The server that ours is compared with: the same service, with handlers that do nothing.

use std::net::SocketAddr;

use anyhow::Context as _;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use wire::worker::worker_pool_server::{WorkerPool, WorkerPoolServer};
use wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, KeepAliveResponse,
    ReturnWorkerRequest, ReturnWorkerResponse, WorkersStateRequest, WorkersStateResponse,
};

use crate::process::announce;

/// Answers every call with an empty message.
#[derive(Clone, Copy, Debug)]
struct Nothing;

#[tonic::async_trait]
impl WorkerPool for Nothing {
    async fn workers_state(
        &self,
        _: Request<WorkersStateRequest>,
    ) -> Result<Response<WorkersStateResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn borrow_worker(
        &self,
        _: Request<BorrowWorkerRequest>,
    ) -> Result<Response<BorrowWorkerResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn keep_alive(
        &self,
        _: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn return_worker(
        &self,
        _: Request<ReturnWorkerRequest>,
    ) -> Result<Response<ReturnWorkerResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

/// Serves on a free loopback port until the process ends, on one current-thread runtime: the
/// fastest way to run tonic that was found.
///
/// # Errors
///
/// No port is free, or the transport fails.
pub fn serve() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let incoming = TcpIncoming::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
            .context("no loopback port can be had")?
            .with_nodelay(Some(true));
        announce(incoming.local_addr()?)?;
        tonic::transport::Server::builder()
            .add_service(WorkerPoolServer::new(Nothing))
            .serve_with_incoming(incoming)
            .await
            .context("the reference server failed")
    })
}
