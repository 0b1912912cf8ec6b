//! The tables of the database: what batches leave in them, and how that is undone.

use std::collections::BTreeMap;

use lease::{BorrowId, Change, Lease, Timestamp};

/// How many ended borrow ids are kept before those that are past are forgotten.
const MOST_REMEMBERED: usize = 512;

#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) leases: BTreeMap<u64, Lease>,
    ended_borrows: BTreeMap<BorrowId, (Timestamp, Change)>,
    ended_traces: Vec<Change>,
}

/// How a commit is undone.
#[derive(Debug)]
pub(crate) enum Undo {
    Lease(u64, Option<Box<Lease>>),
    Borrow(BorrowId, Option<(Timestamp, Change)>),
    Traces(Vec<Change>),
    All(Box<Tables>),
}

impl Tables {
    /// Applies a change of a batch. How it is undone is added to `undo`.
    pub(crate) fn apply(&mut self, change: &Change, undo: &mut Vec<Undo>) {
        let Self { leases, ended_borrows, ended_traces } = self;
        match change {
            Change::Granted(lease) => {
                let serial = lease.id.serial();
                let before = leases.insert(serial, (**lease).clone());
                undo.push(Undo::Lease(serial, before.map(Box::new)));
            }
            Change::Lingers { id, until } => {
                if let Some(lease) = leases.get_mut(&id.serial()) {
                    undo.push(Undo::Lease(id.serial(), Some(Box::new(lease.clone()))));
                    lease.lingers_until = Some(*until);
                }
            }
            Change::Ended { id, .. } => {
                let before = leases.remove(&id.serial());
                undo.push(Undo::Lease(id.serial(), before.map(Box::new)));
            }
            Change::BorrowEnded { id, until, .. } => {
                let before = ended_borrows.insert(*id, (*until, change.clone()));
                undo.push(Undo::Borrow(*id, before));
            }
            Change::TraceEnded(_) => {
                undo.push(Undo::Traces(ended_traces.clone()));
                ended_traces.push(change.clone());
            }
            Change::TraceGone(gone) => {
                undo.push(Undo::Traces(ended_traces.clone()));
                ended_traces.retain(|it| !matches!(it, Change::TraceEnded(end) if end == gone));
            }
            // The users of the simulation do nothing of which these follow.
            Change::Revoked(_)
            | Change::Used { .. }
            | Change::Unused { .. }
            | Change::Reported { .. } => {}
        }
    }

    /// Forgets what is past, if it has become much.
    pub(crate) fn forget(&mut self, now: Timestamp, undo: &mut Vec<Undo>) {
        let borrows = &mut self.ended_borrows;
        if borrows.len() <= MOST_REMEMBERED {
            return;
        }
        let past: Vec<BorrowId> =
            borrows.iter().filter(|(_, (until, _))| *until <= now).map(|(id, _)| *id).collect();
        for id in past {
            let before = borrows.remove(&id);
            undo.push(Undo::Borrow(id, before));
        }
    }

    /// Everything that has to be restored at `now`.
    pub(crate) fn content(&self, now: Timestamp) -> Vec<Change> {
        let Self { leases, ended_borrows, ended_traces } = self;
        let leases = leases.values().map(|lease| Change::Granted(Box::new(lease.clone())));
        let ended = ended_borrows.values().filter(|(until, _)| *until > now);
        let ended = ended.map(|(_, change)| change.clone());
        leases.chain(ended).chain(ended_traces.iter().cloned()).collect()
    }

    /// Undoes one step of a commit.
    pub(crate) fn undo(&mut self, undo: Undo) {
        let Self { leases, ended_borrows, ended_traces } = self;
        match undo {
            Undo::Lease(serial, Some(lease)) => drop(leases.insert(serial, *lease)),
            Undo::Lease(serial, None) => drop(leases.remove(&serial)),
            Undo::Borrow(id, Some(before)) => drop(ended_borrows.insert(id, before)),
            Undo::Borrow(id, None) => drop(ended_borrows.remove(&id)),
            Undo::Traces(before) => *ended_traces = before,
            Undo::All(tables) => *self = *tables,
        }
    }
}
