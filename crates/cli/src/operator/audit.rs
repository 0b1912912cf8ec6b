//! `audit`: the changes that operators made.

use tgm_session_server::api::{AuditEntry, AuditQuery};

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs};
use crate::operator::table::{Column, table};
use crate::operator::words::moment;
use crate::output::{FAINT, Output, plain, styled};

const ABOUT: &str = "\
Examples:
  tgm-session audit
  tgm-session audit --all --format json

The server keeps the latest 10,000 entries, durably.";

/// The most entries in one answer of the server.
const PAGE: u32 = 1000;

/// List the changes that operators made, the latest first.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// How many to list at most.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    /// List all of them.
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
pub(crate) fn run(args: &Args, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    output.show_live(&"asking the server…")?;
    let mut missing = if args.all { u32::MAX } else { args.limit };
    let mut before = None;
    while missing > 0 {
        let query = AuditQuery { before, limit: Some(missing.min(PAGE)) };
        let entries = admin.audit(&query)?.entries;
        let Some(last) = entries.last() else { break };
        before = Some(last.number);
        missing = missing.saturating_sub(u32::try_from(entries.len()).unwrap_or(u32::MAX));
        output.show_all(&entries, entries_table)?;
    }
    output.clear_live()?;
    if before.is_none() && !output.is_json() {
        output.show_all(&[(); 0], |_| styled(FAINT, "no operator has made a change yet"))?;
    }
    Ok(())
}

fn entries_table(entries: &[AuditEntry]) -> String {
    const COLUMNS: [Column<'_>; 6] = [
        Column::number("number"),
        Column::text("when"),
        Column::text("from"),
        Column::text("what"),
        Column::number("ended"),
        Column::text("why"),
    ];
    table(
        &COLUMNS,
        entries.iter().map(|entry| {
            [
                entry.number.to_string(),
                moment(entry.at),
                plain(&entry.from),
                plain(&entry.action),
                entry.ended.to_string(),
                plain(&entry.note),
            ]
        }),
    )
}
