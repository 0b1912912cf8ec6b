//! Measures what leases cost in memory, with an allocator that counts.

use benches::{ledger, pool};
use cap::Cap;
use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Cap<MiMalloc> = Cap::new(MiMalloc, usize::MAX);

/// Counts every allocation
#[derive(Debug, Parser)]
#[command(name = "tgm-session-bench-memory")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Of the ledger alone
    Ledger {
        /// Leases that are live
        #[arg(default_value_t = 1_000_000)]
        leases: usize,
    },
    /// Of a pool that holds sessions and workers
    Pool(pool::MemoryPlan),
}

fn main() -> anyhow::Result<()> {
    let allocated = || ALLOCATOR.allocated();
    let bytes = match Arguments::parse().part {
        Part::Ledger { leases } => serde_json::to_value(ledger::memory(leases, allocated)?)?,
        Part::Pool(plan) => serde_json::to_value(plan.run(allocated)?)?,
    };
    println!("{bytes}");
    Ok(())
}
