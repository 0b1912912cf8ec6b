//! What the journal is written again from, after the database has lost changes that were acknowledged.

use std::time::Duration;

use policy::overrides::OverrideChange;

use super::Shared;
use super::pending::Pending;
use crate::attached::Push;
use crate::journal::Snapshot;
use crate::journal::rows::Rows;
use crate::records::OperatorRecord;
use crate::role::Role;

impl Shared {
    /// Changes and commits nothing until [`Shared::rewritten`], or until the term is extended or over.
    /// Returns whether this server leads with a ledger in memory.
    pub(crate) fn suspend_term(&self) -> bool {
        let mut state = self.state.lock();
        let Role::Leader { valid_until, .. } = &mut state.role else { return false };
        *valid_until = Duration::ZERO;
        state.rewriting = true;
        true
    }

    /// Everything that the store keeps. The term must be suspended, so that nothing changes until the
    /// snapshot is written. `None` when it is not, or an operation panicked.
    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        let own_records = self.records.lock();
        let overrides = own_records.overrides.clone();
        let mut records: Vec<_> =
            own_records.audit.iter().cloned().map(OperatorRecord::Audit).collect();
        let mut state = self.state.lock();
        if !state.rewriting || state.applying {
            return None;
        }
        // The leases get their full TTL when the leader acts again: none of them has ended by then.
        let now = self.now(&mut state);
        state.ledger.extend_all(now);
        let changes = state.ledger.snapshot().collect();
        let stamp = state.stamp();
        drop((state, own_records));
        let overrides = overrides
            .iter()
            .map(|(key, value)| OverrideChange { key: key.clone(), value: Some(value.clone()) });
        records.extend(overrides.map(OperatorRecord::Override));
        Some(Snapshot { rows: Rows::collect(changes, records), stamp })
    }

    /// The last snapshot is durable, and with it all changes that waited. `go_on` gets the number of the
    /// last batch of the term that the journal thread has taken, which is part of the snapshot too.
    pub(crate) fn rewritten(&self, go_on: impl FnOnce(u64)) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.rewriting) {
            return;
        }
        go_on(state.batches);
        let Pending { pushes, .. } = state.pending.take();
        state.shares.clear();
        state.disk.gathering = Duration::ZERO;
        let batch = std::mem::take(&mut state.gathering);
        drop(state);
        batch.settle(Ok(()));
        pushes.into_iter().for_each(Push::deliver);
        self.work.notify_all();
    }
}
