//! `store copy`: copies a store to another engine or place.

use std::fmt;

use serde::Serialize;
use tgm_session_server::store::{self, CopyProgress};

use super::{Records, failure, parse};
use crate::failure::Failure;
use crate::output::{GOOD, Output, plain, styled};

const ABOUT: &str = "\
Examples:
  tgm-session store copy file:/var/lib/tgm-session/sessions.redb \\
        postgres://tgm@db.example/sessions
  tgm-session store copy postgres://tgm@db.example/sessions file:copy.redb
  tgm-session store copy file:copy.redb etcd://10.0.0.1,10.0.0.2,10.0.0.3/sessions

Stop the servers of both stores first: a store in use is refused. FROM is not
changed. TO must be new, or a database without rows. The copy is whole or does
not exist: it is counted before it is kept, and a command that is killed leaves
nothing. Leases, facts of the recent past, usage, overrides and the audit list
are copied; every lease has its full TTL when a server starts on the copy.";

/// Copy everything that a store keeps to a new store.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(super) struct Args {
    /// The URL of the store to copy.
    #[arg(value_name = "FROM")]
    from: String,

    /// The URL of the new store.
    #[arg(value_name = "TO")]
    to: String,
}

/// What was copied.
#[derive(Debug, Serialize)]
struct Copied {
    from: String,
    to: String,
    #[serde(flatten)]
    records: Records,
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, records } = self;
        let done = styled(GOOD, "copied");
        write!(
            f,
            "{done} {} to {}, and counted again:\n{}",
            plain(from),
            plain(to),
            records.lines()
        )
    }
}

/// Runs the command.
pub(super) fn run(args: &Args, mut output: Output) -> Result<(), Failure> {
    let (from, to) = (parse(&args.from)?, parse(&args.to)?);
    let counts = store::copy(&from, &to, &mut |progress| {
        let text = match progress {
            CopyProgress::Watching(time) => format!("watching for a leader for {time:?}…"),
            CopyProgress::Reading => format!("reading {from}…"),
            CopyProgress::Writing(done, total) => format!("{done} of {total} records written…"),
            _ => format!("counting what {to} has…"),
        };
        // A terminal that is gone does not end the copy.
        let _ = output.show_live(&text);
    });
    let counts = counts.map_err(failure);
    output.clear_live()?;
    output.show(&Copied { from: from.to_string(), to: to.to_string(), records: counts?.into() })
}
