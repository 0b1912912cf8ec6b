//! A trace that has ended.

use crate::change::TraceEnd;

/// A trace that has ended and may have leases to be taken out.
#[derive(Debug)]
pub(super) struct EndedTrace {
    pub(super) trace: u32,
    /// Its leases have lower serial numbers than this.
    pub(super) before: u64,
    /// What a change said of it, if one did.
    pub(super) journaled: Option<Box<TraceEnd>>,
}
