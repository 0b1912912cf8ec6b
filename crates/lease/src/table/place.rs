//! Where the scopes of a borrow stand, and what they hold.

/// Where a request's scopes stand, [`NONE`](crate::slab::NONE) for those that hold no lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(super) service: u32,
    pub(super) organization: u32,
    pub(super) pool: u32,
    pub(super) key: u32,
    pub(super) trace: u32,
    pub(super) cell: u32,
    /// Leases of the pool under the same trace id that other indexers hold, or that go with a trace
    /// that has ended.
    pub(super) others: u64,
    /// A cell of those.
    pub(super) other: u32,
    /// Traces of the organization under that id, ended ones too.
    pub(super) traces: usize,
}

impl Place {
    /// The trace that a lease would join, or [`NONE`](crate::slab::NONE).
    pub(crate) const fn trace(&self) -> u32 {
        self.trace
    }

    /// How many traces had to be looked at to find that one.
    pub(crate) const fn traces_looked_at(&self) -> usize {
        self.traces
    }
}

/// What one scope after the other holds, as a borrow compares it with the ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) service: u64,
    pub(crate) organization: u64,
    pub(crate) api_key: u64,
    pub(crate) trace_workers: u64,
}
