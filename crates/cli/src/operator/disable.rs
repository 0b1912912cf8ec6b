//! `disable` and `enable`: keep an organization or an API key out, or let it in.

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs, OfWhom, Subject};
use crate::operator::{Changed, Note};
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

/// One organization or API key, on the command line.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Whom {
    /// What it is.
    #[arg(value_name = "WHAT", value_enum)]
    subject: Subject,

    /// Its id.
    #[arg(value_name = "ID", value_parser = super::id)]
    id: String,
}

impl Whom {
    /// It, for a call.
    pub(crate) fn of(&self) -> OfWhom<'_> {
        OfWhom { subject: self.subject, id: &self.id }
    }
}

/// Runs `disable`.
pub(crate) fn disable(args: &Disable, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    let done = admin.set_disabled(args.whom.of(), true, &args.note.note)?;
    output.show(&Changed(done))
}

/// Runs `enable`.
pub(crate) fn enable(args: &Enable, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    let (whom, note) = (args.whom.of(), &*args.note.note);
    let done = if args.clear {
        admin.clear_disabled(whom, note)?
    } else {
        admin.set_disabled(whom, false, note)?
    };
    output.show(&Changed(done))
}
