//! Measures the client library: what a pool with very many leases costs, and what a pool adds to a call.

mod borrow;
mod gaps;
mod hold;
mod memory;

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use tgm_session::{Dsn, Pool, Session, SessionRequest, TgmConfig, TgmPool, Worker};
use tokio::task::LocalSet;

pub use borrow::{Cost, Plan as BorrowPlan};
pub use hold::{Held, Plan as HoldPlan};
pub use memory::{Bytes, Plan as MemoryPlan};

use crate::ids::{SESSIONS, Traces, WORKERS, api_key, in_turn, organization};

/// Callers that borrow at the same time while everything is set up.
const CALLERS: u64 = 64;

/// What a pool holds.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Load {
    /// Sessions, each with a trace of its own
    #[arg(long)]
    pub sessions: u64,
    /// Workers under each session
    #[arg(long)]
    pub workers: u32,
}

impl Load {
    /// Sessions and workers.
    pub const fn leases(self) -> u64 {
        self.sessions * (1 + self.workers as u64)
    }
}

/// A session with its workers.
#[derive(Debug)]
struct Stream {
    session: Session,
    workers: Vec<Worker>,
}

/// A pool of the server at `address`, with a channel that the library makes.
fn connect(address: SocketAddr, parameters: &str) -> anyhow::Result<Pool> {
    let dsn = Dsn::parse(&format!("tgm://{address}?plaintext=true&{parameters}"))?;
    let pool = TgmPool::connect(&TgmConfig::from_dsn(&dsn)?)?;
    Ok(Pool::new(std::sync::Arc::new(pool)))
}

/// Borrows everything that `load` says, from several callers at once, under traces of this `run`.
async fn borrow_all(pool: &Pool, load: Load, run: u64) -> anyhow::Result<Vec<Stream>> {
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let pool = pool.clone();
            tokio::task::spawn_local(async move {
                let mut traces = Traces::new((run << 32) + caller);
                let mut streams = Vec::new();
                for number in (caller..load.sessions).step_by(CALLERS as usize) {
                    let session = pool.borrow(request(number, &mut traces)).await?;
                    let mut workers = Vec::with_capacity(load.workers as usize);
                    for _ in 0..load.workers {
                        workers.push(session.borrow_worker(WORKERS, load.workers).await?);
                    }
                    streams.push(Stream { session, workers });
                }
                anyhow::Ok(streams)
            })
        })
        .collect();
    let mut streams = Vec::with_capacity(load.sessions as usize);
    for caller in callers {
        streams.extend(caller.await.context("a caller panicked")??);
    }
    ensure!(streams.len() as u64 == load.sessions, "{} sessions were borrowed", streams.len());
    Ok(streams)
}

/// A session as a streaming service asks for it.
fn request(number: u64, traces: &mut Traces) -> SessionRequest {
    let n = in_turn(number);
    SessionRequest::new(SESSIONS, organization(n)).api_key(api_key(n)).trace(traces.next_id())
}

/// Runs `work` on a current-thread runtime, so that the pool and its callers are one thread.
fn on_one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(LocalSet::new().run_until(work))
}
