//! Every rule of the ledger, by itself and compared with a simple model.

use lease::{Change, Lease, Ledger, PoolReading, PoolUse, Timestamp};

mod chunks;
mod contract;
mod invariants;
mod model;
mod policy;
mod reading;
mod revocations;
mod rules;
mod usage;

/// Reads at once what a server reads in parts.
trait ReadWhole {
    /// Every live lease, without its borrow id.
    fn leases(&self) -> impl Iterator<Item = Lease>;

    /// The counts of a pool.
    fn state(&mut self, service: &str, organization: &str, now: Timestamp) -> PoolUse;
}

impl ReadWhole for Ledger {
    fn leases(&self) -> impl Iterator<Item = Lease> {
        self.snapshot().filter_map(|change| match change {
            Change::Granted(lease) => Some(Lease { borrowed_as: None, ..*lease }),
            _ => None,
        })
    }

    fn state(&mut self, service: &str, organization: &str, now: Timestamp) -> PoolUse {
        let mut reading = PoolReading::default();
        while !reading.is_done() {
            self.read_pool(service, organization, &mut reading, now);
        }
        reading.finish()
    }
}
