//! What a held lease costs in memory, on the side of the client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::{Load, borrow_all, connect, on_one_thread};

/// How long everything is held before it is counted: longer than the longest interval between two
/// keep-alives, so that every queue has its lasting size.
const SETTLE: Duration = Duration::from_secs(22);

/// The options of one run.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// The address of the server
    #[arg(long)]
    address: SocketAddr,
    /// The leases that are held
    #[command(flatten)]
    load: Load,
}

/// What a held lease costs in memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bytes {
    /// Leases held.
    pub leases: u64,
    /// Bytes allocated for each, its guard and ids included.
    pub each: f64,
}

impl Plan {
    /// Runs the plan; `allocated` returns how many bytes are allocated now.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or something that is held ends.
    pub fn run(&self, allocated: impl Fn() -> usize) -> anyhow::Result<Bytes> {
        on_one_thread(async {
            let pool = connect(self.address, "borrow-timeout=30s")?;
            // The memory of the connection and of the stream is not counted, because it does not
            // depend on the number of leases.
            let first = borrow_all(&pool, Load { sessions: 1, workers: 1 }, 0).await?;
            let before = allocated();
            let streams = borrow_all(&pool, self.load, 1).await?;
            tokio::time::sleep(SETTLE).await;
            let each = allocated().saturating_sub(before) as f64 / self.load.leases() as f64;
            let alive = |stream: &super::Stream| stream.session.end_reason().is_none();
            ensure!(first.iter().chain(&streams).all(alive), "a session ended");
            Ok(Bytes { leases: self.load.leases(), each })
        })
    }
}
