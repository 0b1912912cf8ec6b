//! `policy` and `reload`: show the policy in force, and load its file again.

use std::fmt;

use serde::Serialize;
use tgm_session_server::api::{EffectivePolicy, Override, PolicyStatus, ServiceRow};
use tgm_session_server::text::amount_in_words;

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs, Fault};
use crate::operator::changed::Changed;
use crate::operator::table::{Column, table};
use crate::operator::words::moment;
use crate::output::{BAD, Output, WARN, plain, styled};

const SHOWING: &str = "\
Examples:
  tgm-session policy
  tgm-session policy --format json | jq .overrides

tgm-session organizations ID shows where each limit of an organization comes
from.";

const LOADING: &str = "\
Examples:
  tgm-session reload

The server checks its policy file twice a second. Use this command to load it
now and to see the result. An invalid file is refused with its line and reason
and exit code 2; the policy in force stays.";

/// Show the policy in force: services, plans and overrides.
#[derive(Debug, clap::Args)]
#[command(after_help = SHOWING)]
pub(crate) struct Show {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Make the server load its policy file now.
#[derive(Debug, clap::Args)]
#[command(after_help = LOADING)]
pub(crate) struct Reload {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs `policy`.
pub(crate) fn show(args: &Show, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    output.show_live(&"asking the server…")?;
    output.show(&InForce(admin.policy()?))
}

/// Runs `reload`.
pub(crate) fn reload(args: &Reload, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    output.show_live(&"loading the policy file…")?;
    let done = admin.reload().map_err(|fault| match fault {
        // The file is invalid, or there is none.
        Fault::Conflict(problem) => Failure::Usage(problem),
        fault => fault.into(),
    });
    output.clear_live()?;
    output.show(&Changed(done?))
}

/// The policy in force.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct InForce(EffectivePolicy);

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EffectivePolicy { status, services, plans, indexers, overrides } = &self.0;
        write_status(status, f)?;
        write!(f, "\n{}", services_table(services))?;
        for plan in plans {
            let limits =
                plan.limits.iter().map(|limit| format!("{} {}", plain(&limit.service), limit.max));
            let budgets = plan.budgets.iter().map(|budget| {
                let (metric, per) = (plain(&budget.metric), plain(&budget.per));
                format!("{metric} {} per {per}", amount_in_words(&budget.metric, budget.amount))
            });
            let terms: Vec<_> = limits.chain(budgets).collect();
            write!(f, "\nplan {}: {}", plain(&plan.plan), terms.join(", "))?;
        }
        match &indexers[..] {
            [] => write!(f, "\nno indexers: callers show no key")?,
            indexers => {
                let names: Vec<_> = indexers.iter().map(|name| plain(name)).collect();
                write!(f, "\nindexers: {}", names.join(", "))?;
            }
        }
        match &overrides[..] {
            [] => write!(f, "\nno overrides"),
            overrides => write!(f, "\n{}", overrides_table(overrides)),
        }
    }
}

fn write_status(status: &PolicyStatus, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let file = status.file.as_deref().unwrap_or("built in");
    write!(f, "policy {}, loaded {}", plain(file), moment(status.loaded_at))?;
    if let Some(refused) = &status.refused {
        let label = styled(BAD, "the file as it is now is refused:");
        write!(f, "\n{label} {}", plain(refused))?;
    }
    for warning in &status.warnings {
        write!(f, "\n{} {}", styled(WARN, "warning:"), plain(warning))?;
    }
    Ok(())
}

fn services_table(services: &[ServiceRow]) -> String {
    const COLUMNS: [Column<'_>; 8] = [
        Column::text("service"),
        Column::number("active"),
        Column::number("in total"),
        Column::number("per organization"),
        Column::number("per API key"),
        Column::number("TTL"),
        Column::number("minimal life"),
        Column::text(""),
    ];
    let limit = |max: Option<u64>| max.map_or_else(|| "none".to_owned(), |max| max.to_string());
    table(
        &COLUMNS,
        services.iter().map(|service| {
            [
                plain(&service.service),
                service.active.to_string(),
                limit(service.max_total),
                limit(service.max_per_organization),
                limit(service.max_per_api_key),
                format!("{}s", service.ttl_seconds),
                format!("{}s", service.minimal_life_seconds),
                if service.observe { "observed only".to_owned() } else { String::new() },
            ]
        }),
    )
}

fn overrides_table(overrides: &[Override]) -> String {
    const COLUMNS: [Column<'_>; 4] =
        [Column::text("override"), Column::text("is"), Column::text("since"), Column::text("why")];
    table(
        &COLUMNS,
        overrides.iter().map(|set| {
            let whom = format!("{} {}", plain(&set.subject.replace('_', " ")), plain(&set.id));
            let is = match (set.disabled, &set.service, set.max) {
                (Some(true), ..) => "disabled".to_owned(),
                (Some(false), ..) => "enabled".to_owned(),
                (None, Some(service), Some(max)) => format!("{} limited to {max}", plain(service)),
                _ => "set".to_owned(),
            };
            let is = if set.effective { is } else { is + " (without effect: no such service)" };
            [whom, is, moment(set.set_at), plain(&set.note)]
        }),
    )
}
