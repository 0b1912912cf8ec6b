//! What `top` prints if the output is not a terminal: the same data, once.

use std::fmt;

use serde::Serialize;
use tgm_session_server::api::{
    Fleet, Organization, OrganizationPage, OrganizationsQuery, Overview, ServiceRow,
};

use super::fetch::fleet;
use crate::failure::Failure;
use crate::operator::admin::Admin;
use crate::operator::fleet::led;
use crate::operator::organizations::{footer, listed};
use crate::operator::words::refused;
use crate::output::{BAD, FAINT, Output, WARN, plain, styled};

/// How many organizations are shown.
const MOST: u32 = 50;

/// The server and its fullest organizations.
#[derive(Debug, Serialize)]
struct Shown {
    overview: Overview,
    /// The servers that share the store, if several can.
    #[serde(skip_serializing_if = "Option::is_none")]
    fleet: Option<Fleet>,
    /// How many organizations there are.
    total: u64,
    /// The fullest of them.
    organizations: Vec<Organization>,
}

/// Prints the overview and the fullest organizations.
///
/// # Errors
///
/// Those of the calls and of the output.
pub(super) fn show(admin: &Admin, output: &mut Output) -> Result<(), Failure> {
    let (overview, fleet) = (admin.overview()?, fleet(admin)?);
    let query = OrganizationsQuery { limit: Some(MOST), ..OrganizationsQuery::default() };
    let OrganizationPage { total, organizations } = admin.organizations(&query)?;
    output.show(&Shown { overview, fleet, total, organizations })
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let overview = &self.overview;
        writeln!(f, "tgm-session {}  {}", plain(&overview.version), plain(&overview.store))?;
        if let Some(fleet) = &self.fleet {
            writeln!(f, "{}", led(fleet))?;
            for warning in &fleet.warnings {
                writeln!(f, "{} {}", styled(WARN, "warning:"), plain(warning))?;
            }
        }
        if !overview.ready {
            let why = overview.problem.as_deref().unwrap_or("no reason was given");
            writeln!(f, "{} {}", styled(BAD, "the server refuses changes:"), plain(why))?;
        }
        if let Some(why) = &overview.policy.refused {
            writeln!(f, "{} {}", styled(BAD, "the policy file is refused:"), plain(why))?;
        }
        writeln!(
            f,
            "sessions {}  workers {}  organizations {} of {} active  attached {}  refused in the \
             last hour {}",
            overview.sessions,
            overview.workers,
            overview.active_organizations,
            overview.organizations,
            overview.attached_streams,
            refused(&overview.refusals)
        )?;
        let services: Vec<_> = overview.services.iter().map(service).collect();
        writeln!(f, "services {}", services.join("  "))?;
        if !self.organizations.is_empty() {
            writeln!(f, "{}", listed(&self.organizations))?;
        }
        write!(f, "{}", styled(FAINT, footer(self.organizations.len() as u64, self.total)))
    }
}

fn service(row: &ServiceRow) -> String {
    let name = plain(&row.service);
    match row.max_total {
        Some(max) => format!("{name} {}/{max}", row.active),
        None => format!("{name} {}", row.active),
    }
}
