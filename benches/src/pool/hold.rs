//! Holds very many leases in one process, and measures their keep-alives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

use super::gaps::Gaps;
use super::{Load, Stream, borrow_all, connect, on_one_thread};
use crate::process::{cpu_of, thread_cpu};

/// How often the counters of all leases are read.
const LOOK: Duration = Duration::from_millis(250);

/// How long a new pool may take until its keep-alives are steady.
const SETTLE: Duration = Duration::from_secs(2);

/// The options of one run.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// The address of the server
    #[arg(long)]
    address: SocketAddr,
    /// The process id of the server, whose CPU time is read
    #[arg(long)]
    server: u32,
    /// The leases that are held
    #[command(flatten)]
    load: Load,
    /// Seconds that are measured
    #[arg(long)]
    seconds: f64,
}

/// The results of one run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Leases held during the measurement.
    pub leases: u64,
    /// Whether keep-alives went over one stream.
    pub attached: bool,
    /// Seconds it took to borrow everything.
    pub set_up: f64,
    /// Keep-alives per second that were answered with a full TTL.
    pub keep_alives: f64,
    /// The share of one core that the thread of the pool used.
    pub client: f64,
    /// The share of one core that the server used.
    pub server: f64,
    /// The longest time between two keep-alives of one lease, in seconds. The error is at most a
    /// quarter of a second, the time between two reads of the counters.
    pub longest_gap: f64,
}

impl Plan {
    /// Runs the plan.
    ///
    /// # Errors
    ///
    /// The server cannot be reached, or something that is held ends.
    pub fn run(&self) -> anyhow::Result<Held> {
        on_one_thread(self.play())
    }

    async fn play(&self) -> anyhow::Result<Held> {
        let pool = connect(self.address, "borrow-timeout=30s")?;
        let started = Instant::now();
        let streams = Arc::new(borrow_all(&pool, self.load, 1).await?);
        let set_up = started.elapsed().as_secs_f64();
        tokio::time::sleep(SETTLE).await;

        let over = Arc::new(AtomicBool::new(false));
        // The counters are read on another thread, because the CPU time of the pool's thread is
        // measured.
        let looking = std::thread::spawn({
            let (streams, over) = (streams.clone(), over.clone());
            move || look(&streams, &over)
        });
        let (before, cpu, server) = (pool.stats(), thread_cpu(), cpu_of(self.server)?);
        let measured = Instant::now();
        tokio::time::sleep(Duration::from_secs_f64(self.seconds)).await;
        let seconds = measured.elapsed().as_secs_f64();
        let (after, cpu) = (pool.stats(), thread_cpu().saturating_sub(cpu));
        let server = cpu_of(self.server)?.saturating_sub(server);
        over.store(true, Ordering::Relaxed);
        let longest = looking.join().ok().context("the thread that looks for gaps panicked")?;

        let ended = streams.iter().filter(|stream| stream.session.end_reason().is_some()).count();
        ensure!(ended == 0, "{ended} sessions ended while they were kept alive");
        let held = after.sessions_held + after.workers_held;
        ensure!(held == self.load.leases(), "{held} leases are held");
        Ok(Held {
            leases: held,
            attached: before.attached && after.attached,
            set_up,
            keep_alives: (after.kept_alive - before.kept_alive) as f64 / seconds,
            client: cpu.as_secs_f64() / seconds,
            server: server.as_secs_f64() / seconds,
            longest_gap: longest.as_secs_f64(),
        })
    }
}

/// Reads the counters until `over` is set, and returns the longest gap.
fn look(streams: &[Stream], over: &AtomicBool) -> Duration {
    let counters = || {
        streams.iter().flat_map(|stream| {
            let workers = stream.workers.iter().map(|worker| worker.keep_alives());
            std::iter::once(stream.session.keep_alives()).chain(workers)
        })
    };
    let start = Instant::now();
    let mut gaps = Gaps::begin(counters(), start.elapsed());
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK);
        gaps.look(counters(), start.elapsed());
    }
    gaps.longest(start.elapsed())
}
