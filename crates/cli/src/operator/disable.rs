//! `disable` and `enable`: refuse the borrows of an organization or an API key, or allow them.

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
it is enabled. This is an override: it is durable, and takes precedence over
the policy file, also over one that is loaded later. enable --clear clears it.";

const ENABLING: &str = "\
Examples:
  tgm-session enable organization acme --note 'paid'
  tgm-session enable organization acme --clear
      the policy file decides again

Without --clear this is an override too: it enables what the policy file
disables.";

/// Disable an organization or an API key: its leases end at once, and its borrows are refused.
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

/// Enable an organization or an API key, or clear the override.
#[derive(Debug, clap::Args)]
#[command(after_help = ENABLING)]
pub(crate) struct Enable {
    #[command(flatten)]
    whom: Whom,

    /// Clear the override: the policy file decides again.
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
    let done = admin.set_disabled(args.whom.target(), Some(true), &args.note.note)?;
    output.show(&Changed(done))
}

/// Runs `enable`.
pub(crate) fn enable(args: &Enable, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    let disabled = (!args.clear).then_some(false);
    let done = admin.set_disabled(args.whom.target(), disabled, &args.note.note)?;
    output.show(&Changed(done))
}
