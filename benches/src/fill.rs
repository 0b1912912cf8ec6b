//! Borrows sessions and returns none, over the generated client.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context as _, ensure};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::worker_pool_client::WorkerPoolClient;

use crate::ids::Traces;
use crate::pairs::{borrow, connect};
use crate::process::now;

/// Callers at once, enough to share commits.
const CALLERS: u64 = 256;

/// Connections of all callers.
const CONNECTIONS: usize = 8;

/// The options of one run.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// The address of the server
    #[arg(long)]
    pub address: SocketAddr,
    /// Sessions to borrow, each with a trace of its own
    #[arg(long)]
    pub sessions: u64,
}

impl Plan {
    /// Runs the plan on a current-thread runtime.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or a borrow was not granted.
    pub fn run(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(tokio::task::LocalSet::new().run_until(self.play()))
    }

    async fn play(&self) -> anyhow::Result<()> {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            channels.push(connect(self.address).await?);
        }
        // No two runs have the same borrow ids and traces.
        let run = now().wrapping_mul(CALLERS);
        let left = Rc::new(Cell::new(self.sessions));
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let left = Rc::clone(&left);
                let channel = &channels[caller as usize % channels.len()];
                let mut client = WorkerPoolClient::new(channel.clone());
                tokio::task::spawn_local(async move {
                    let mut traces = Traces::new(run + caller);
                    while let Some(turn) = left.get().checked_sub(1) {
                        left.set(turn);
                        let answer = borrow(&mut client, turn, &mut traces).await?;
                        ensure!(answer.status() == BorrowStatus::Borrowed, "{answer:?}");
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for caller in callers {
            caller.await.context("a caller panicked")??;
        }
        Ok(())
    }
}
