//! `store`: copies a store, and looks into one.

mod copy;
mod inspect;

use clap::Subcommand;
use serde::Serialize;
use tgm_session_server::store::{self, RecordCounts, StoreUrl};

use crate::failure::Failure;
use crate::output::{Output, counted};

const ABOUT: &str = "\
Examples:
  tgm-session store inspect file:/var/lib/tgm-session/sessions.redb
  tgm-session store copy file:/var/lib/tgm-session/sessions.redb \\
        postgres://tgm@db.example/sessions

The commands take the URLs of serve --store. A password of a database may be in
the URL, in PGPASSWORD, or in the file that PGPASSFILE names.";

/// Copy a store to another place, or look into one.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Copy(copy::Args),
    Inspect(inspect::Args),
}

/// Runs the command.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    match &args.command {
        Command::Copy(args) => copy::run(args, output),
        Command::Inspect(args) => inspect::run(args, output),
    }
}

/// Reads the URL of a store. No message repeats a password in it.
fn parse(url: &str) -> Result<StoreUrl, Failure> {
    url.parse().map_err(failure)
}

fn failure(error: store::Error) -> Failure {
    tgm_session_server::Error::from(error).into()
}

/// The number of records of a store, as it is printed.
#[derive(Debug, Serialize)]
struct Records {
    leases: u64,
    lingering: u64,
    remembered: u64,
    usage: u64,
    overrides: u64,
    audit: u64,
}

impl From<RecordCounts> for Records {
    fn from(counts: RecordCounts) -> Self {
        let RecordCounts { leases, lingering, remembered, usage, overrides, audit } = counts;
        Self { leases, lingering, remembered, usage, overrides, audit }
    }
}

impl Records {
    /// A line for each kind.
    fn lines(&self) -> String {
        let Self { leases, lingering, remembered, usage, overrides, audit } = *self;
        format!(
            "  {} ({lingering} lingering)\n  {} of the recent past: ends, revocations, reports\n  \
             {} of usage\n  {}\n  {} in the audit list",
            counted(leases, "lease"),
            counted(remembered, "fact"),
            counted(usage, "count"),
            counted(overrides, "override"),
            counted(audit, "change"),
        )
    }
}
