//! `sessions`: list leases.

use clap::ValueEnum;
use tgm_session_server::api::{AgeOrder, LeaseKinds, Session, SessionPage, SessionsQuery};

use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs};
use crate::operator::table::{Column, table};
use crate::operator::words::span;
use crate::output::{FAINT, Output, counted, plain, styled};

const ABOUT: &str = "\
Examples:
  tgm-session sessions                       the newest 100
  tgm-session sessions --organization acme --service t1r
  tgm-session sessions --oldest --limit 10   the longest-running sessions
  tgm-session sessions --trace 4bf92f3577b34da6a3ce929d0e0e4736 --kind any
  tgm-session sessions --all --format json \\
        | jq -r .organization | sort | uniq -c

revoke takes the lease number of the first column. It is not a key: nobody can
keep a lease alive or return it with that number.";

/// The most leases in one answer of the server.
const PAGE: u32 = 1000;

/// List sessions and workers: who holds them, for how long, under which trace.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,

    /// The oldest first instead of the newest.
    #[arg(long)]
    oldest: bool,

    /// How many to list at most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,

    /// List all of them.
    #[arg(long, conflicts_with = "limit")]
    all: bool,

    #[command(flatten)]
    admin: AdminArgs,
}

/// The filter of leases.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Filter {
    /// Only of this organization.
    #[arg(long, value_name = "ID", value_parser = super::args::id)]
    pub(crate) organization: Option<String>,

    /// Only of this service.
    #[arg(long, value_name = "NAME", value_parser = super::args::id)]
    pub(crate) service: Option<String>,

    /// Only under this trace id.
    #[arg(long, value_name = "ID", value_parser = super::args::id)]
    pub(crate) trace: Option<String>,

    /// Only with this API key id.
    #[arg(long, value_name = "ID", value_parser = super::args::id)]
    pub(crate) api_key: Option<String>,

    /// Only of this indexer.
    #[arg(long, value_name = "NAME", value_parser = super::args::id)]
    pub(crate) indexer: Option<String>,

    /// Which kinds of leases.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) kind: Kind,
}

/// Which kinds of leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Sessions.
    #[default]
    Session,
    /// Workers.
    Worker,
    /// Both.
    Any,
}

impl Kind {
    /// The word for one of them.
    pub(crate) const fn noun(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Worker => "worker",
            Self::Any => "lease",
        }
    }
}

impl From<Kind> for LeaseKinds {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Session => Self::Session,
            Kind::Worker => Self::Worker,
            Kind::Any => Self::Any,
        }
    }
}

impl Filter {
    /// Whether it has a condition other than the kind.
    pub(crate) fn is_narrow(&self) -> bool {
        let Self { organization, service, trace, api_key, indexer, kind: _ } = self;
        [organization, service, trace, api_key, indexer].into_iter().any(Option::is_some)
    }

    /// Passes the leases that match to `see`, page by page, until it has seen `most` of them. Returns how
    /// many leases match.
    ///
    /// # Errors
    ///
    /// Those of the call, and of `see`.
    pub(crate) fn pages(
        &self,
        admin: &Admin,
        order: AgeOrder,
        most: u64,
        mut see: impl FnMut(Vec<Session>) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let mut query = SessionsQuery {
            organization: self.organization.clone(),
            service: self.service.clone(),
            trace: self.trace.clone(),
            api_key: self.api_key.clone(),
            indexer: self.indexer.clone(),
            kind: self.kind.into(),
            order,
            ..SessionsQuery::default()
        };
        let mut missing = most;
        loop {
            query.limit = Some(u32::try_from(missing).unwrap_or(PAGE).min(PAGE));
            let SessionPage { total, sessions, next } = admin.sessions(&query)?;
            missing = missing.saturating_sub(sessions.len() as u64);
            let more = !sessions.is_empty() && missing > 0;
            see(sessions)?;
            match next {
                Some(next) if more => query.after = Some(next),
                _ => return Ok(total),
            }
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    let order = if args.oldest { AgeOrder::Oldest } else { AgeOrder::Newest };
    let most = if args.all { u64::MAX } else { args.limit };
    let mut shown = 0;
    output.show_live(&"asking the server…")?;
    let total = args.filter.pages(&admin, order, most, |sessions| {
        shown += sessions.len() as u64;
        if sessions.is_empty() { Ok(()) } else { output.show_all(&sessions, listed) }
    })?;
    output.clear_live()?;
    if output.is_json() {
        return Ok(());
    }
    let what = args.filter.kind.noun();
    let footer = match shown {
        0 => format!("no {what}s"),
        shown if shown < total => format!("{shown} of {total} {what}s; --all lists all of them"),
        shown => counted(shown, what),
    };
    output.show_all(&[(); 0], |_| styled(FAINT, footer))
}

/// Leases as a table.
pub(crate) fn listed(sessions: &[Session]) -> String {
    const COLUMNS: [Column<'_>; 10] = [
        Column::text("lease"),
        Column::text("kind"),
        Column::text("service"),
        Column::text("organization"),
        Column::text("API key"),
        Column::text("trace"),
        Column::text("indexer"),
        Column::number("age"),
        Column::number("ends unless kept alive"),
        Column::number("workers"),
    ];
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { plain(text) };
    table(
        &COLUMNS,
        sessions.iter().map(|lease| {
            let ends_in = span(lease.ends_in_seconds);
            [
                plain(&lease.lease),
                plain(&lease.kind),
                plain(&lease.service),
                plain(&lease.organization),
                dash(&lease.api_key),
                dash(&lease.trace),
                dash(lease.indexer.as_deref().unwrap_or_default()),
                span(lease.age_seconds),
                if lease.lingers { format!("lingers {ends_in}") } else { ends_in },
                if lease.kind == "worker" { String::new() } else { lease.workers.to_string() },
            ]
        }),
    )
}
