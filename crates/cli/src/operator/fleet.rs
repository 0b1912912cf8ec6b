//! `fleet` and `step-down`: the servers that share a store, and which of them leads.

use std::fmt;

use serde::Serialize;
use tgm_session_server::api;

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs, Fault};
use crate::operator::args::Note;
use crate::operator::changed::Changed;
use crate::operator::table::{Column, table};
use crate::operator::words::{moment, span};
use crate::output::{FAINT, NAME, Output, WARN, counted, plain, styled};

const LISTING: &str = "\
Examples:
  tgm-session fleet
  tgm-session fleet --format json | jq -r .leader.address

Any server of the fleet answers. One that has died is listed for about a minute.
Servers with equal policy hashes have equal policies, whatever their settings.";

const STEPPING_DOWN: &str = "\
Examples:
  tgm-session step-down --dry-run
  tgm-session step-down --note 'a new kernel'

The leader commits what it has applied and hands over to a standby with the same
policy; no call fails and no session ends. Stopping a leader with SIGTERM does
the same. Exit code 3: no other server is ready, or only one with another policy
(--force).";

/// List the servers of the fleet, and which of them leads.
#[derive(Debug, clap::Args)]
#[command(after_help = LISTING)]
pub(crate) struct Show {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Make the leader hand over to another server of the fleet.
#[derive(Debug, clap::Args)]
#[command(after_help = STEPPING_DOWN)]
pub(crate) struct StepDown {
    /// Hand over to a server with another policy too.
    #[arg(long)]
    force: bool,

    /// Only tell which server would take over.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    note: Note,

    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs `fleet`.
pub(crate) fn show(args: &Show, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    output.show_live(&"asking the server…")?;
    output.show(&Fleet(admin.fleet()?))
}

/// Runs `step-down`.
pub(crate) fn step_down(args: &StepDown, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    output.show_live(&"asking the leader…")?;
    let StepDown { force, dry_run, note: Note { note }, .. } = args;
    let (force, dry_run, note) = (*force, *dry_run, note.clone());
    let done = admin.step_down(&api::StepDownQuery { force, dry_run, note });
    output.show(&Changed(done.map_err(|fault| match fault {
        // No other server is ready, or this one is alone.
        Fault::Conflict(problem) => Failure::Refused(problem),
        fault => fault.into(),
    })?))
}

/// Who leads a fleet, and how many servers it has.
pub(crate) fn led(fleet: &api::Fleet) -> String {
    let servers = counted(fleet.servers.len() as u64, "server");
    match &fleet.leader {
        Some(leader) => {
            format!("{servers}, led by {} in term {}", plain(&leader.address), leader.epoch)
        }
        None => format!("{servers}, nobody leads"),
    }
}

/// The servers of a fleet, as they are printed.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Fleet(api::Fleet);

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COLUMNS: [Column<'_>; 8] = [
            Column::text("server"),
            Column::text("role"),
            Column::text("since"),
            Column::number("epoch"),
            Column::text("version"),
            Column::text("policy"),
            Column::text("seen"),
            Column::text(""),
        ];
        let api::Fleet { shared, leader, servers, warnings } = &self.0;
        if !shared {
            let alone = "the store belongs to this server alone: there is no fleet";
            return f.write_str(&styled(FAINT, alone));
        }
        for warning in warnings {
            writeln!(f, "{} {}", styled(WARN, "warning:"), plain(warning))?;
        }
        if let Some(api::FleetLeader { address, epoch }) = leader {
            writeln!(f, "{} leads in term {epoch}", styled(NAME, plain(address)))?;
        }
        let rows = servers.iter().map(|server| {
            [
                plain(&server.address),
                plain(&server.role),
                moment(server.role_since),
                server.epoch.map_or_else(String::new, |epoch| epoch.to_string()),
                plain(&server.version),
                plain(&server.policy_hash),
                format!("{} ago", span(server.seen_seconds_ago)),
                if server.is_self { "answers here".to_owned() } else { String::new() },
            ]
        });
        f.write_str(&table(&COLUMNS, rows))
    }
}
