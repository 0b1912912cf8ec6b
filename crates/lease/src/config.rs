//! The configuration of a ledger.

use crate::slab::RECORDS_PER_HOLD;

/// The configuration of a ledger.
#[derive(Clone, Copy)]
pub struct Config {
    /// Most leases at once, whatever the policy allows.
    pub max_leases: u64,
    /// Most bytes that the ids of all leases take up at once.
    pub max_id_bytes: u64,
    /// Most borrow ids remembered of one indexer; where several have some, each may have a fair part
    /// of that. `None` is twice `max_leases`, and 2,048 at least.
    pub max_borrow_ids: Option<u64>,
    /// Most idempotency keys of reports remembered of one indexer.
    pub max_report_keys: u64,
    /// Most counts of usage, of one metric of one organization each; those of budgets always fit.
    pub max_counts: u64,
    /// Most of these counts that one indexer causes for organizations that the policy does not know.
    pub max_unknown_counts: u64,
    /// Where the secrets of keys and the order of hash tables come from. A server fills it from
    /// the operating system; the same seed gives the same ledger.
    pub seed: [u8; 32],
    /// Whether changes are collected for [`Ledger::drain_changes`](crate::Ledger::drain_changes).
    pub journal: bool,
    /// Most records that one operation takes out of the table or reads; never more than
    /// [`RECORDS_PER_HOLD`].
    pub records_per_hold: usize,
}

impl Default for Config {
    /// Room for 2,000,000 leases with 512 MiB of ids, for 100,000 idempotency keys of each indexer
    /// and 1,000,000 counts, 100,000 of each indexer for organizations that the policy does not
    /// know; a seed of zeros, no journal.
    fn default() -> Self {
        Self {
            max_leases: 2_000_000,
            max_id_bytes: 512 << 20,
            max_borrow_ids: None,
            max_report_keys: 100_000,
            max_counts: 1_000_000,
            max_unknown_counts: 100_000,
            seed: [0; 32],
            journal: false,
            records_per_hold: RECORDS_PER_HOLD,
        }
    }
}

impl Config {
    pub(crate) fn memory_of_leases(&self) -> usize {
        whole(self.max_leases.max(1_024))
    }

    pub(crate) fn memory_of_borrow_ids(&self) -> usize {
        self.max_borrow_ids.map_or(self.memory_of_leases().saturating_mul(2), whole)
    }
}

pub(crate) fn whole(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The seed is a secret.
        f.debug_struct("Config").finish_non_exhaustive()
    }
}
