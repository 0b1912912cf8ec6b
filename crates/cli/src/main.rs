//! `tgm-session`: the session server and the tools around it, in one binary.

mod bar;
mod borrow;
mod check;
mod demo;
mod failure;
mod logs;
mod output;
mod remote;
mod serve;
mod signals;
mod state;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::failure::Failure;
use crate::logs::Logs;
use crate::output::{Format, Output};

/// A stream of small requests on few threads gains a few percent from a faster allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
Start here:
  tgm-session demo                                  see it work, in 10 seconds
  tgm-session serve                                 a server on this machine, no configuration
  tgm-session borrow 'tgm://127.0.0.1:9010?plaintext=true' --organization acme
  tgm-session state  'tgm://127.0.0.1:9010?plaintext=true' --organization acme

Exit codes: 0 done, 1 failed (a port or a store that cannot be had too), 2 a wrong flag, URL or
policy, 3 refused (a ceiling, a budget, a revocation), 4 the server is unavailable.";

/// Sessions and quotas for streaming data services: who may run how many streams and workers.
#[derive(Debug, Parser)]
#[command(name = "tgm-session", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,

    /// How data is printed: text for people, or JSON, one value per line.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "TGM_SESSION_FORMAT",
        hide_env_values = true,
        help_heading = "Output"
    )]
    format: Format,

    #[command(flatten)]
    logs: Logs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    Demo(demo::Args),
    Borrow(borrow::Args),
    State(state::Args),
    Check(check::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version too come as an error; whether anybody reads them changes nothing.
            let _ = answer.print();
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(1));
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                let _ = writeln!(
                    anstream::stderr(),
                    "{}: {}",
                    output::error("error"),
                    output::plain(message)
                );
            }
            failure.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    cli.logs.start(matches!(cli.command, Command::Serve(_)))?;
    let output = Output::new(cli.format);
    match cli.command {
        Command::Serve(args) => serve::run(*args, output),
        Command::Demo(args) => demo::run(&args, output),
        Command::Borrow(args) => borrow::run(args, output),
        Command::State(args) => state::run(args, output),
        Command::Check(args) => check::run(&args, output),
    }
}

/// A runtime on this thread; servers bring threads of their own.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
