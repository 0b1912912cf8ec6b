//! `disable` and `enable`: keep an organization or an API key out, or let it in.

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs};
use crate::operator::args::{Note, Whom};
use crate::operator::changed::Changed;
use crate::output::Output;

const DISABLING: &str = "\
Examples:
  tgm-session disable organization acme --note 'invoice 1207 is open'
  tgm-session disable api-key key-1

Its leases end at once, and its borrows are refused (PERMISSION_DENIED) until
it is enabled. This is an override: durable, and stronger than the policy
file, whatever is loaded later. enable --clear takes it away.";

const ENABLING: &str = "\
Examples:
  tgm-session enable organization acme --note 'paid'
  tgm-session enable organization acme --clear
      leave it to the policy file again

Without --clear this too is an override: it lets in what the policy file
disables.";

/// Disable an organization or an API key: its leases end at once, and it is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = DISABLING)]
pub(crate) struct Disable {
    #[command(flatten)]
    whom: Whom,

    #[command(flatten)]
    note: Note,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Enable an organization or an API key, or leave it to the policy file again.
#[derive(Debug, clap::Args)]
#[command(after_help = ENABLING)]
pub(crate) struct Enable {
    #[command(flatten)]
    whom: Whom,

    /// Take away what an operator set: the policy file decides again.
    #[arg(long)]
    clear: bool,

    #[command(flatten)]
    note: Note,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs `disable`.
pub(crate) fn disable(args: &Disable, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    let done = admin.set_disabled(args.whom.target(), true, &args.note.note)?;
    output.show(&Changed(done))
}

/// Runs `enable`.
pub(crate) fn enable(args: &Enable, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    let (whom, note) = (args.whom.target(), &*args.note.note);
    let done = if args.clear {
        admin.clear_disabled(whom, note)?
    } else {
        admin.set_disabled(whom, false, note)?
    };
    output.show(&Changed(done))
}
