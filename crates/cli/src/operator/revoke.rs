//! `revoke`: end sessions and workers.

use std::fmt;
use std::io::{BufRead as _, IsTerminal as _, Write as _};

use serde::Serialize;
use tgm_session_server::api::AgeOrder;

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs, Fault};
use crate::operator::args::Note;
use crate::operator::changed::Changed;
use crate::operator::sessions::Filter;
use crate::output::{GOOD, Output, counted, plain, styled};

const ABOUT: &str = "\
Examples:
  tgm-session sessions --organization acme   the lease numbers
  tgm-session revoke 000000070000000000000012 --note 'runs for a week'
  tgm-session revoke --trace 4bf92f3577b34da6a3ce929d0e0e4736 --yes
  tgm-session revoke --organization acme --service t1r

A lease ends at once, and with the last session of a trace its workers. The
server tells the client, which does not borrow it again. A stream that is
opened again is a new session: to prevent that, disable the organization or
lower its limit first. Several leases end only after a confirmation, or with
--yes.";

/// End a session or a worker at once, or all that match a filter.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The number of the lease, as sessions shows it.
    #[arg(
        value_name = "LEASE",
        value_parser = lease,
        conflicts_with_all = FILTERS,
        conflicts_with = "kind"
    )]
    lease: Option<String>,

    #[command(flatten)]
    filter: Filter,

    /// End all that match the filter without a confirmation.
    #[arg(long, short, conflicts_with = "lease")]
    yes: bool,

    #[command(flatten)]
    note: Note,

    #[command(flatten)]
    admin: AdminArgs,
}

/// The flags that select leases, instead of a number.
const FILTERS: [&str; 5] = ["organization", "service", "trace", "api_key", "indexer"];

fn lease(text: &str) -> Result<String, String> {
    if text.len() == 24 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_owned())
    } else {
        Err("a lease number has 24 hex digits; tgm-session sessions lists them".into())
    }
}

/// The result of several revocations.
#[derive(Debug, Serialize)]
struct Ended {
    /// How many leases matched the filter.
    matched: u64,
    /// How many leases ended, including the workers of ended sessions.
    ended: u64,
    /// How many had already ended before they were revoked.
    gone: u64,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = counted(self.ended, "lease");
        write!(f, "{} {ended} ended", styled(GOOD, "done:"))?;
        if self.gone > 0 {
            write!(f, "; {} of {} had ended already", self.gone, self.matched)?;
        }
        Ok(())
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    if let Some(lease) = &args.lease {
        let done = admin.revoke(lease, &args.note.note)?;
        return output.show(&Changed(done));
    }
    if !args.filter.is_narrow() {
        let problem = "give the number of a lease, or a filter (--organization, --service, --trace, \
                       --api-key, --indexer)";
        return Err(Failure::Usage(problem.into()));
    }
    output.show_live(&"asking the server…")?;
    let mut leases = Vec::new();
    // All are listed before the first one ends: what is borrowed meanwhile is not revoked.
    args.filter.pages(&admin, AgeOrder::Oldest, u64::MAX, |page| {
        leases.extend(page.into_iter().map(|session| session.lease));
        Ok(())
    })?;
    output.clear_live()?;
    if !leases.is_empty() && !args.yes {
        confirm(leases.len() as u64, &args.filter)?;
    }
    let mut ended = Ended { matched: leases.len() as u64, ended: 0, gone: 0 };
    for (number, lease) in leases.iter().enumerate() {
        output.show_live(&format_args!("ending {} of {}…", number + 1, leases.len()))?;
        match admin.revoke(lease, &args.note.note) {
            Ok(done) => ended.ended += done.ended,
            // It has already ended, perhaps with its session.
            Err(Fault::NotFound(_)) => ended.gone += 1,
            Err(fault) => {
                let far = format!("after {number} of {}", counted(ended.matched, "lease"));
                return Err(Failure::from(fault).about(&far));
            }
        }
    }
    output.show(&ended)
}

/// Asks for a confirmation if standard input is a terminal.
fn confirm(count: u64, filter: &Filter) -> Result<(), Failure> {
    let what = format!("{}{}", counted(count, filter.kind.noun()), described(filter));
    if !std::io::stdin().is_terminal() {
        return Err(Failure::Usage(format!("this would end {what}: confirm it with --yes")));
    }
    let mut stderr = anstream::stderr();
    write!(stderr, "End {what} at once? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|error| Failure::Failed(format!("cannot read the answer: {error}")))?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Failed("nothing was ended".into())),
    }
}

/// The filter in words, such as ` of organization acme on t1r`.
fn described(filter: &Filter) -> String {
    [
        ("of organization", &filter.organization),
        ("on", &filter.service),
        ("under trace", &filter.trace),
        ("with API key", &filter.api_key),
        ("of indexer", &filter.indexer),
    ]
    .into_iter()
    .filter_map(|(word, value)| Some(format!(" {word} {}", plain(value.as_deref()?))))
    .collect()
}
