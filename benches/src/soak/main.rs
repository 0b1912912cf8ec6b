//! The soak that `scripts/soak` builds and starts. Streaming services and a session server run as
//! separate processes, with random faults of the network between them and random kills.

mod counts;
mod guest;
#[path = "../../../crates/client/tests/support/host.rs"]
mod host;
mod hosts;
mod play;
#[path = "../../../crates/client/tests/support/proxy.rs"]
mod proxy;
mod show;
mod weather;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Injects faults for a while, then checks that every count is right
#[derive(Debug, Parser)]
#[command(name = "tgm-session-soak")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Run the soak
    Run(play::Options),
    /// Run one streaming service: commands on standard input, reports on standard output
    Host(guest::Options),
}

fn main() -> ExitCode {
    let part = Arguments::parse().part;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let played = runtime.map_err(Into::into).and_then(|runtime| match part {
        Part::Run(options) => runtime.block_on(play::run(&options)),
        Part::Host(options) => runtime.block_on(guest::run(&options)),
    });
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
