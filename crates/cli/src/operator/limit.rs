//! `limit`: set the limit of an organization or an API key.

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs};
use crate::operator::args::{Note, Whom};
use crate::operator::changed::Changed;
use crate::output::Output;

const ABOUT: &str = "\
Examples:
  tgm-session limit organization acme t1r 40 --note 'trial until Friday'
  tgm-session limit api-key key-1 t1r 0
      no lease is granted for this key
  tgm-session limit organization acme t1r --clear
      the policy file decides again

It applies from the next borrow; a lowered limit ends no lease. This is an
override: it is durable, and takes precedence over the policy file, also over
one that is loaded later.";

/// Set or clear the limit of an organization or an API key on a service.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    #[command(flatten)]
    whom: Whom,

    /// The service, as the policy names it.
    #[arg(value_name = "SERVICE", value_parser = super::args::id)]
    service: String,

    /// The most leases at once; 0 admits nobody.
    #[arg(value_name = "MAX", required_unless_present = "clear", conflicts_with = "clear")]
    max: Option<u64>,

    /// Clear the override: the policy file decides again.
    #[arg(long)]
    clear: bool,

    #[command(flatten)]
    note: Note,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
pub(crate) fn run(args: &Args, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    let done = admin.set_limit(args.whom.target(), &args.service, args.max, &args.note.note)?;
    output.show(&Changed(done))
}
