//! The benchmark that `scripts/bench` builds and starts, and the parts it starts in turn.

use std::process::ExitCode;
use std::time::Duration;

use benches::run::{self, Options};
use benches::{disk, fill, gateway, ledger, pairs, pool, reference};
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the session server beside a server that does nothing
#[derive(Debug, Parser)]
#[command(name = "tgm-session-bench")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Run the benchmark and print its tables
    Run(Options),
    /// Serve the reference: the same service, with handlers that do nothing
    Reference,
    /// Borrow and return, from callers in this process
    Pairs(pairs::Plan),
    /// Borrow sessions and return none
    Fill(fill::Plan),
    /// Hold sessions and workers in a pool of this process
    Hold(pool::HoldPlan),
    /// Borrow and return, through a pool or by bare calls
    Borrow(pool::BorrowPlan),
    /// Forward all calls to another server, except those of SessionControl
    Gateway {
        /// The address of the other server
        #[arg(long)]
        address: std::net::SocketAddr,
    },
    /// Measure the ledger alone
    Ledger {
        /// Sessions that stay live
        #[arg(long, default_value_t = 0)]
        live: usize,
        /// Seconds for each figure
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
    },
    /// Measure how often this disk makes a small write durable
    Fdatasync {
        /// A folder on the disk
        #[arg(default_value = ".")]
        folder: std::path::PathBuf,
    },
}

fn main() -> ExitCode {
    match play(Arguments::parse().part) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(part: Part) -> anyhow::Result<()> {
    let answer = match part {
        Part::Run(options) => return run::run(options),
        Part::Reference => return reference::serve(),
        Part::Gateway { address } => return gateway::serve(address),
        Part::Fill(plan) => return plan.run(),
        Part::Hold(plan) => serde_json::to_value(plan.run()?)?,
        Part::Borrow(plan) => serde_json::to_value(plan.run()?)?,
        Part::Pairs(plan) => serde_json::to_value(plan.run()?)?,
        Part::Ledger { live, seconds } => {
            serde_json::to_value(ledger::speed(live, Duration::from_secs_f64(seconds))?)?
        }
        Part::Fdatasync { folder } => {
            let rate = disk::fdatasyncs_per_second(&folder, Duration::from_secs(1))?;
            serde_json::json!({ "fdatasyncs_per_second": rate })
        }
    };
    println!("{answer}");
    Ok(())
}
