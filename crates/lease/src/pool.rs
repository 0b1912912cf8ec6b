//! The counts of a pool: the leases of one organization and service.

/// The counts of the pool (organization, service) that a borrow answer shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolState {
    /// Live leases of the pool, lingering ones too.
    pub borrowed: u64,
    /// The limit of the pool at this borrow.
    pub max: Option<u64>,
    /// Distinct traces with a live lease in the pool.
    pub traces: u64,
    /// Live leases of the pool under the borrower's own trace; 0 when it has none.
    pub own_trace: u64,
}

/// The counts of one pool (organization, service) that holds a lease. Its names are borrowed from the
/// ledger (`&str`) or owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolCount<N = Box<str>> {
    /// The service.
    pub service: N,
    /// The organization.
    pub organization: N,
    /// Live leases, lingering ones too.
    pub leases: u64,
    /// Those of them that are sessions.
    pub sessions: u64,
}

impl From<PoolCount<&str>> for PoolCount {
    fn from(count: PoolCount<&str>) -> Self {
        let PoolCount { service, organization, leases, sessions } = count;
        Self { service: service.into(), organization: organization.into(), leases, sessions }
    }
}

/// The most traces that the state of a pool lists.
pub const MAX_TRACES_LISTED: usize = 4_096;

/// The counts of one pool (organization, service).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Leases of the pool, lingering ones too.
    pub leases: u64,
    /// Leases by trace, of those that have one: the traces with the most leases first, at most
    /// [`MAX_TRACES_LISTED`].
    pub traces: Vec<(Box<str>, u64)>,
    /// How many traces are left out.
    pub omitted: u64,
}
