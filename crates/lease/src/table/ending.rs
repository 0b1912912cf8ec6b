//! Traces that have ended, and the leases of an organization in the order they are revoked in.

use crate::change::TraceEnd;
use crate::clock::Timestamp;
use crate::lease::Kind;
use crate::slab::NONE;

use super::Table;
use super::entry::Entry;
use super::scopes::{HAS_ENDED, Trace};

/// The state of the sessions of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sessions {
    /// One is live, or the trace never had any.
    Live,
    /// There are some, and all are past their ends: the trace has ended.
    Ended,
    /// More sessions would have to be checked than is allowed.
    Unknown,
}

impl Table {
    /// The trace a lease belongs to, or [`NONE`].
    pub(crate) fn trace_of(&self, entry: &Entry) -> u32 {
        self.cells.get(entry.cell).map_or(NONE, |cell| cell.trace)
    }

    pub(crate) fn trace_has_ended(&self, trace: u32) -> bool {
        self.traces.get(trace).is_some_and(Trace::has_ended)
    }

    /// How many traces have ended and are still there.
    pub(crate) fn ended_traces(&self) -> usize {
        self.traces.iter().filter(|(_, trace)| trace.has_ended()).count()
    }

    /// Looks for a session of the trace that is not past its end; each one checked takes one off
    /// `looks`.
    pub(crate) fn sessions_of(&self, trace: u32, now: Timestamp, looks: &mut usize) -> Sessions {
        let Some(trace) = self.traces.get(trace).filter(|trace| trace.sessions > 0) else {
            return Sessions::Live;
        };
        let mut slot = trace.heads.sessions;
        while slot != NONE {
            let Some(left) = looks.checked_sub(1) else { return Sessions::Unknown };
            *looks = left;
            let entry = &self.leases[slot];
            if entry.ends_at > now {
                return Sessions::Live;
            }
            slot = entry.in_trace.next;
        }
        Sessions::Ended
    }

    /// Whether the trace has sessions that are not taken out.
    pub(crate) fn has_sessions(&self, trace: u32) -> bool {
        self.traces.get(trace).is_some_and(|trace| trace.sessions > 0)
    }

    /// Marks a trace as ended: it is no longer found by its id, and stays until
    /// [`Table::forget_trace`].
    pub(crate) fn end_trace(&mut self, trace: u32) {
        self.traces[trace].indexer |= HAS_ENDED;
    }

    /// The next lease of a trace to take out: sessions go before workers.
    pub(crate) fn first_of_trace(&self, trace: u32) -> Option<u32> {
        let heads = self.traces.get(trace)?.heads;
        [heads.sessions, heads.workers].into_iter().find(|&slot| slot != NONE)
    }

    /// Forgets a trace that has ended and has no lease left.
    pub(crate) fn forget_trace(&mut self, trace: u32) {
        self.traces.remove(trace);
    }

    /// The end of a trace, of all leases that were granted before the one of serial number `before`.
    pub(crate) fn trace_end(&self, trace: u32, before: u64) -> TraceEnd {
        let trace = &self.traces[trace];
        TraceEnd {
            indexer: self.indexer_name(trace.indexer & !HAS_ENDED).map(Into::into),
            organization: self.organizations[trace.organization].name.as_str().into(),
            trace: trace.id.clone(),
            before,
        }
    }

    /// The leases that an end of a trace is about.
    pub(crate) fn leases_of(&self, end: &TraceEnd) -> Vec<u32> {
        let organization = self.organizations.find(&end.organization);
        let mut slots = Vec::new();
        for at in self.traces.all((organization, &end.trace)) {
            let trace = &self.traces[at];
            if self.indexer_name(trace.indexer) != end.indexer.as_deref() {
                continue;
            }
            for mut slot in [trace.heads.sessions, trace.heads.workers] {
                while slot != NONE {
                    let entry = &self.leases[slot];
                    if entry.serial.get() < end.before {
                        slots.push(slot);
                    }
                    slot = entry.in_trace.next;
                }
            }
        }
        slots
    }
}

/// How far a walk over the pools of an organization has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AtPool {
    /// Before the first.
    #[default]
    Start,
    /// At this one.
    Pool(u32),
    /// Past the last.
    End,
}

impl Table {
    /// Whether the organization holds any lease.
    pub(crate) fn has_leases_of(&self, organization: &str) -> bool {
        self.organizations.find(organization) != NONE
    }

    /// The pool of an organization at which a walk continues: the first one again when the pool of the
    /// walk is gone.
    pub(crate) fn pool_at(&self, organization: &str, at: AtPool) -> Option<u32> {
        let organization = self.organizations.find(organization);
        let head = self.organizations.get(organization)?.head;
        match at {
            AtPool::Pool(at)
                if self.pools.get(at).is_some_and(|pool| pool.organization == organization) =>
            {
                Some(at)
            }
            AtPool::Start | AtPool::Pool(_) => Some(head),
            AtPool::End => None,
        }
    }

    /// The position after a pool.
    pub(crate) fn after_pool(&self, pool: u32) -> AtPool {
        match self.pools[pool].in_organization.next {
            NONE => AtPool::End,
            next => AtPool::Pool(next),
        }
    }

    pub(crate) fn has_pool(&self, pool: u32) -> bool {
        self.pools.get(pool).is_some()
    }

    /// Any lease of that kind of a pool.
    pub(crate) fn first_of_pool(&self, pool: u32, kind: Kind) -> Option<u32> {
        Some(self.pools[pool].heads.of(kind)).filter(|&slot| slot != NONE)
    }

    pub(crate) fn service_of_pool(&self, pool: u32) -> &str {
        &self.services[self.pools[pool].service].name
    }
}
