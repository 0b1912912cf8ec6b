//! `organizations`: limits, leases and used budgets of organizations.

use std::collections::BTreeSet;
use std::fmt;

use clap::ValueEnum;
use serde::Serialize;
use tgm_session_server::api::{
    Organization, OrganizationOrder, OrganizationPage, OrganizationsQuery,
};
use tgm_session_server::text::amount_in_words;

use crate::bar::Bar;
use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs};
use crate::operator::table::{Column, table};
use crate::operator::words::{budget, moment, refusals, refused, tightest};
use crate::output::{FAINT, Output, TITLE, WARN, counted, plain, styled};

const ABOUT: &str = "\
Examples:
  tgm-session organizations
      the 50 that are closest to a limit or budget
  tgm-session organizations acme
      one of them, and where each number comes from
  tgm-session organizations --search west --sort name --all
  tgm-session organizations --sort refused --limit 10
      the most refused in the last hour
  tgm-session organizations --all --format json";

/// The most organizations in one answer of the server.
const PAGE: u32 = 500;
/// How many cells a bar takes in a table.
const CELLS: u64 = 8;

/// List organizations: their leases and limits, used budgets, and refusals of the last hour.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// One organization, in full.
    #[arg(value_name = "ID", value_parser = super::args::id, conflicts_with_all = ["search", "sort", "limit", "all"])]
    id: Option<String>,

    /// Only organizations whose id contains this; upper and lower case are the same.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    search: String,

    /// The order [default: fullest; with --all name, because an order that changes between two pages
    /// loses organizations].
    #[arg(long, value_enum)]
    sort: Option<Sort>,

    /// How many to list at most.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,

    /// List all of them.
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    #[command(flatten)]
    admin: AdminArgs,
}

/// The order of organizations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Closest to a limit or a budget first.
    Fullest,
    /// Most leases first.
    Active,
    /// Most refusals in the last hour first.
    Refused,
    /// By id.
    Name,
}

impl From<Sort> for OrganizationOrder {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Fullest => Self::Fullest,
            Sort::Active => Self::Active,
            Sort::Refused => Self::Refused,
            Sort::Name => Self::Name,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    output.show_live(&"asking the server…")?;
    if let Some(id) = &args.id {
        return output.show(&InFull(admin.organization(id)?));
    }
    let most = if args.all { u32::MAX } else { args.limit };
    let (mut shown, mut total) = (0, u64::MAX);
    let sort = args.sort.unwrap_or(if args.all { Sort::Name } else { Sort::Fullest });
    let mut query = OrganizationsQuery {
        search: args.search,
        sort: sort.into(),
        ..OrganizationsQuery::default()
    };
    while shown < most && u64::from(shown) < total {
        query.offset = shown;
        query.limit = Some((most - shown).min(PAGE));
        let page: OrganizationPage = admin.organizations(&query)?;
        total = page.total;
        if page.organizations.is_empty() {
            break;
        }
        shown = shown.saturating_add(u32::try_from(page.organizations.len()).unwrap_or(u32::MAX));
        output.show_all(&page.organizations, listed)?;
    }
    output.clear_live()?;
    if output.is_json() {
        return Ok(());
    }
    output.show_all(&[(); 0], |_| styled(FAINT, footer(shown.into(), total)))
}

/// The last line: how many organizations are listed, and of how many.
pub(crate) fn footer(shown: u64, total: u64) -> String {
    match shown {
        0 => "no organizations".to_owned(),
        shown if shown < total => {
            format!("{shown} of {total} organizations; organizations --all lists all of them")
        }
        shown => counted(shown, "organization"),
    }
}

/// Organizations as a table, with a column for each service that any of them may hold.
pub(crate) fn listed(organizations: &[Organization]) -> String {
    let services: BTreeSet<&str> = organizations
        .iter()
        .flat_map(|organization| &organization.services)
        .map(|service| &*service.service)
        .collect();
    let headings: Vec<_> = services.iter().map(|service| plain(service)).collect();
    let mut columns = vec![Column::text("organization"), Column::text("plan")];
    columns.extend(headings.iter().map(|heading| Column::text(heading)));
    columns.extend([Column::text("budget"), Column::number("refused")]);
    table(
        &columns,
        organizations.iter().map(|organization| {
            let name = plain(&organization.organization);
            let disabled = organization.disabled.disabled;
            let mut cells = vec![
                if disabled { name + " (disabled)" } else { name },
                plain(organization.plan.as_deref().unwrap_or("-")),
            ];
            cells.extend(services.iter().map(|name| {
                let mut held = organization.services.iter();
                let held = held.find(|service| service.service == *name);
                held.map_or_else(
                    || "-".to_owned(),
                    |held| Bar { active: held.active, max: held.ceiling.max }.plain(CELLS),
                )
            }));
            cells.extend([
                tightest(&organization.budgets).map_or("-".to_owned(), |row| plain(&budget(row))),
                refused(&organization.refusals).to_string(),
            ]);
            cells
        }),
    )
}

/// Everything about one organization.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct InFull(Organization);

impl fmt::Display for InFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Organization { organization, plan, disabled, services, budgets, .. } = &self.0;
        write!(f, "{}", styled(TITLE, plain(organization)))?;
        if let Some(plan) = plan {
            write!(f, "  plan {}", plain(plan))?;
        }
        if disabled.disabled {
            let word = format!("disabled by {}", disabled.source.in_words());
            write!(f, "  {}", styled(WARN, word))?;
        }
        let rows = services.iter().map(|service| {
            let bar = Bar { active: service.active, max: service.ceiling.max };
            let source = service.ceiling.source.in_words().to_owned();
            [plain(&service.service), bar.plain(CELLS), source]
        });
        let columns = [Column::text("service"), Column::text("leases"), Column::text("limit by")];
        write!(f, "\n{}", table(&columns, rows))?;
        if !budgets.is_empty() {
            let rows = budgets.iter().map(|row| {
                [
                    plain(&budget(row)),
                    amount_in_words(&row.metric, row.used),
                    amount_in_words(&row.metric, row.amount),
                    plain(&row.per),
                    moment(row.resets_at),
                ]
            });
            let columns = [
                Column::text("budget"),
                Column::number("used"),
                Column::number("of"),
                Column::text("per"),
                Column::text("resets"),
            ];
            write!(f, "\n{}", table(&columns, rows))?;
        }
        write!(f, "\nrefused in the last hour: {}", refusals(&self.0.refusals))
    }
}
