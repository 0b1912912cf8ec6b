//! Queries of operators and their answers: leases, pools, usage.

use lease::{Kind, LeaseNumber, ListedLease, Used};

use crate::answers::Unavailable;

/// The most leases of one page.
pub const MAX_PAGE: usize = 1_000;

/// Which leases to list: those that match all fields that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseFilter {
    /// Only of this organization.
    pub organization: Option<Box<str>>,
    /// Only of this service.
    pub service: Option<Box<str>>,
    /// Only under this trace id.
    pub trace: Option<Box<str>>,
    /// Only with this API key id.
    pub api_key: Option<Box<str>>,
    /// Only of this indexer.
    pub indexer: Option<Box<str>>,
    /// Only sessions, or only workers.
    pub kind: Option<Kind>,
}

impl LeaseFilter {
    /// Whether the lease matches the filter.
    pub fn matches(&self, lease: &ListedLease<&str>) -> bool {
        let same = |asked: &Option<Box<str>>, name| {
            asked.as_deref().is_none_or(|asked: &str| Some(asked) == name)
        };
        self.kind.is_none_or(|kind| kind == lease.kind)
            && same(&self.organization, Some(lease.organization))
            && same(&self.service, Some(lease.service))
            && same(&self.api_key, Some(lease.api_key))
            && same(&self.trace, Some(lease.trace))
            && same(&self.indexer, lease.indexer)
    }
}

/// The order in which leases are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The latest grant first.
    #[default]
    Newest,
    /// The earliest grant first.
    Oldest,
}

/// One page of leases.
///
/// Reading page after page neither misses nor repeats a lease that lives the whole time, whatever
/// leases are granted or end in the meantime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeasePage {
    /// How many leases match the filter in total.
    pub total: u64,
    /// The leases, in the requested order. A page that is not the last has fewer leases than the
    /// limit when some ended while the page was read.
    pub leases: Vec<ListedLease>,
    /// The lease after which the next page starts; `None` when this page is the last.
    pub next: Option<LeaseNumber>,
}

/// What an organization used of one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageCount {
    /// The organization.
    pub organization: Box<str>,
    /// The metric.
    pub metric: Box<str>,
    /// The counts.
    pub used: Used,
}

/// Why an operator's action was not recorded. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The store has the most overrides that it keeps.
    #[error("there are {max} overrides, which is all that the server keeps: clear some first")]
    Full {
        /// The most overrides that the store keeps.
        max: usize,
    },
    /// The store cannot answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}
