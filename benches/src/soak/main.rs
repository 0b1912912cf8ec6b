//! The soak that `scripts/soak` builds and starts: streaming services and a session server as
//! processes of their own, with everything between and around them failing at random.

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

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Lets everything fail for a while, and counts what is left
#[derive(Debug, Parser)]
#[command(name = "tgm-session-soak")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Run the whole
    Run(Options),
    /// Be one streaming service: commands on standard input, reports on standard output
    Host(guest::Options),
}

/// How the soak is run.
#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// The server: tgm-session
    #[arg(long, value_name = "PROGRAM")]
    server: PathBuf,
    /// Where its store and the logs are made
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// Seconds of trouble; calm and the account of it come on top
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

impl Options {
    fn trouble(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
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
