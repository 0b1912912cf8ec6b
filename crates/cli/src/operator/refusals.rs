//! `refusals`: the latest refused borrows.

use tgm_session_server::api::{Refusal, RefusalsQuery};

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs};
use crate::operator::table::{Column, table};
use crate::operator::words::moment;
use crate::output::{FAINT, Output, plain, styled};

const ABOUT: &str = "\
Examples:
  tgm-session refusals
  tgm-session refusals --organization acme --limit 5
  tgm-session refusals --format json

The server keeps the latest 1,000, in memory.";

/// List the latest refused borrows and why they were refused.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// Only of this organization.
    #[arg(long, value_name = "ID", value_parser = super::args::id)]
    organization: Option<String>,

    /// How many to list at most.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
pub(crate) fn run(args: Args, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    output.show_live(&"asking the server…")?;
    let query = RefusalsQuery { organization: args.organization, limit: Some(args.limit) };
    let refusals = admin.refusals(&query)?.refusals;
    output.show_all(&refusals, |refusals| match refusals {
        [] => styled(FAINT, "nothing was refused"),
        refusals => refusals_table(refusals),
    })
}

fn refusals_table(refusals: &[Refusal]) -> String {
    const COLUMNS: [Column<'_>; 5] = [
        Column::text("when"),
        Column::text("organization"),
        Column::text("service"),
        Column::text("by"),
        Column::text("why"),
    ];
    table(
        &COLUMNS,
        refusals.iter().map(|refusal| {
            let granted = if refusal.observed { " (observed only: granted)" } else { "" };
            [
                moment(refusal.at),
                plain(&refusal.organization),
                plain(&refusal.service),
                plain(&refusal.scope),
                plain(&refusal.reason) + granted,
            ]
        }),
    )
}
