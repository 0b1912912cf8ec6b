//! `limit`: raise or lower a ceiling.

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs};
use crate::operator::args::{Note, Whom};
use crate::operator::changed::Changed;
use crate::output::Output;

const ABOUT: &str = "\
Examples:
  tgm-session limit organization acme t1r 40 --note 'trial until Friday'
  tgm-session limit api-key key-1 t1r 0
      nobody gets in with this key
  tgm-session limit organization acme t1r --clear
      leave it to the policy file again

The next borrow is held to it; a lowered limit ends nobody. This is an
override: durable, and stronger than the policy file, whatever is loaded
later.";

/// Set or clear the ceiling of an organization or an API key over a service.
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

    /// Take away what an operator set: the policy file decides again.
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
    let (whom, note) = (args.whom.target(), &*args.note.note);
    let done = match args.max {
        Some(max) => admin.set_limit(whom, &args.service, max, note)?,
        None => admin.clear_limit(whom, &args.service, note)?,
    };
    output.show(&Changed(done))
}
