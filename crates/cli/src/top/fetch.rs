//! Fetches the data of the screen.

use tgm_session_server::api::{
    AgeOrder, Fleet, LeaseKinds, Organization, OrganizationOrder, OrganizationPage,
    OrganizationsQuery, Overview, Refusal, RefusalsQuery, SessionPage, SessionsQuery,
};

use crate::failure::Failure;
use crate::operator::admin::{Admin, Fault};

/// How many organizations are fetched at once: more than any screen shows.
pub(super) const WINDOW: u32 = 300;
/// How many sessions of one organization are fetched: the most in one answer of the server.
pub(super) const MOST_SESSIONS: u32 = 1000;
/// How many refusals of one organization are shown.
const REFUSALS: u32 = 3;

/// The list on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Query {
    /// Organizations, a window of them.
    Organizations { search: String, order: OrganizationOrder, offset: u32 },
    /// One organization and its leases.
    Leases { organization: String, order: AgeOrder, kinds: LeaseKinds },
}

/// An answer of the server.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) want: Query,
    pub(super) overview: Overview,
    /// The servers that share the store, if several can.
    pub(super) fleet: Option<Fleet>,
    /// The list; `None` if it has not changed.
    pub(super) list: Option<List>,
}

/// The list in an answer.
#[derive(Clone, Debug)]
pub(super) enum List {
    /// Organizations from the offset of the query on.
    Organizations(OrganizationPage),
    /// One organization; `None` if the server does not know it.
    Leases(Option<Box<OrganizationLeases>>),
}

/// One organization and its leases.
#[derive(Clone, Debug)]
pub(super) struct OrganizationLeases {
    pub(super) organization: Organization,
    pub(super) page: SessionPage,
    pub(super) refusals: Vec<Refusal>,
}

/// Fetches the overview, and the list if the revision is not the `known` one.
///
/// # Errors
///
/// Those of the calls.
pub(super) fn fetch(admin: &Admin, want: Query, known: Option<u64>) -> Result<Update, Failure> {
    // The overview comes first: a change between the two calls makes the list newer than its revision, and
    // the next update fetches it again. In the other order that change would be missed.
    let overview = admin.overview()?;
    let fleet = fleet(admin)?;
    if known == Some(overview.revision) {
        return Ok(Update { want, overview, fleet, list: None });
    }
    let list = match &want {
        Query::Organizations { search, order, offset } => {
            List::Organizations(admin.organizations(&OrganizationsQuery {
                search: search.clone(),
                sort: *order,
                offset: *offset,
                limit: Some(WINDOW),
            })?)
        }
        Query::Leases { organization, order, kinds } => {
            List::Leases(held(admin, organization, *order, *kinds)?.map(Box::new))
        }
    };
    Ok(Update { want, overview, fleet, list: Some(list) })
}

/// Fetches the servers that share the store; `None` if no other server can.
///
/// # Errors
///
/// Those of the call.
pub(super) fn fleet(admin: &Admin) -> Result<Option<Fleet>, Failure> {
    match admin.fleet() {
        Ok(fleet) => Ok(Some(fleet).filter(|fleet| fleet.shared)),
        // A server of an earlier version.
        Err(Fault::NotFound(_)) => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}

fn held(
    admin: &Admin,
    id: &str,
    order: AgeOrder,
    kinds: LeaseKinds,
) -> Result<Option<OrganizationLeases>, Failure> {
    let organization = match admin.organization(id) {
        Ok(organization) => organization,
        Err(Fault::NotFound(_)) => return Ok(None),
        Err(fault) => return Err(fault.into()),
    };
    let page = admin.sessions(&SessionsQuery {
        organization: Some(id.to_owned()),
        kind: kinds,
        order,
        limit: Some(MOST_SESSIONS),
        ..SessionsQuery::default()
    })?;
    let query = RefusalsQuery { organization: Some(id.to_owned()), limit: Some(REFUSALS) };
    let refusals = admin.refusals(&query)?.refusals;
    Ok(Some(OrganizationLeases { organization, page, refusals }))
}
