//! Recomputing every count from the table.

use std::collections::{HashMap, HashSet};

use crate::lease::Kind;
use crate::slab::NONE;

use super::Table;
use super::entry::Entry;
use super::links::Links;
use super::scopes::{Pool, Rank};

impl Table {
    /// Recomputes every count and list from the leases alone.
    ///
    /// The answer names the first one that is off.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let indexed = [
            ("services", self.services.is_indexed()),
            ("organizations", self.organizations.is_indexed()),
            ("pools", self.pools.is_indexed()),
            ("API keys", self.keys.is_indexed()),
            ("traces", self.traces.is_indexed()),
            ("cells", self.cells.is_indexed()),
        ];
        if let Some((what, _)) = indexed.into_iter().find(|(_, indexed)| !indexed) {
            return Err(format!("the index of {what} does not match its records"));
        }
        self.audit_counts()?;
        self.audit_unnamed()?;
        self.audit_lists()?;
        self.audit_ranking()
    }

    fn audit_counts(&self) -> Result<(), String> {
        let entries = || self.leases.iter().map(|(_, entry)| entry);
        let of = |kind| entries().filter(move |entry| entry.kind() == kind);
        let with_trace = |entry: &&Entry| entry.cell != NONE;
        let trace_of = |entry: &Entry| self.trace_of(entry);

        let kept = self.services.iter().map(|(at, service)| (at, service.leases));
        same("leases of service", kept, entries().map(|entry| self.pools[entry.pool].service))?;
        let kept = self.pools.iter().map(|(at, pool)| (at, pool.leases));
        same("leases of pool", kept, entries().map(|entry| entry.pool))?;
        let kept = self.pools.iter().map(|(at, pool)| (at, u64::from(pool.sessions)));
        same("sessions of pool", kept, of(Kind::Session).map(|entry| entry.pool))?;
        let kept = self.keys.iter().map(|(at, key)| (at, key.leases));
        same("leases of API key", kept, entries().map(|entry| entry.key).filter(|&at| at != NONE))?;
        let kept = self.cells.iter().map(|(at, cell)| (at, u64::from(cell.leases)));
        same("leases of cell", kept, entries().filter(with_trace).map(|entry| entry.cell))?;
        let kept = self.cells.iter().map(|(at, cell)| (at, u64::from(cell.workers)));
        same("workers of cell", kept, of(Kind::Worker).filter(with_trace).map(|entry| entry.cell))?;
        let kept = self.traces.iter().map(|(at, trace)| (at, u64::from(trace.sessions)));
        same("sessions of trace", kept, of(Kind::Session).filter(with_trace).map(trace_of))?;
        let kept = self.traces.iter().map(|(at, trace)| (at, u64::from(trace.workers)));
        same("workers of trace", kept, of(Kind::Worker).filter(with_trace).map(trace_of))?;
        let traces: HashSet<(u32, &str)> = entries()
            .filter(with_trace)
            .map(|entry| (entry.pool, &*self.traces[self.trace_of(entry)].id))
            .collect();
        let kept = self.pools.iter().map(|(at, pool)| (at, pool.traces));
        same("traces of pool", kept, traces.into_iter().map(|(pool, _)| pool))?;
        let kept = self.organizations.iter().map(|(at, record)| (at, u64::from(record.pools)));
        same("pools of organization", kept, self.pools.iter().map(|(_, pool)| pool.organization))
    }

    /// A service may be named while leases of it live, and then counts no more.
    fn audit_unnamed(&self) -> Result<(), String> {
        let mut leases: HashMap<(u32, u32), u32> = HashMap::new();
        for (_, entry) in self.leases.iter().filter(|(_, entry)| entry.is_unnamed()) {
            let service = self.pools[entry.pool].service;
            *leases.entry((entry.indexer(), service)).or_insert(0) += 1;
        }
        let wrong = |(of, count): &(_, u32)| leases.get(of).is_none_or(|leases| count > leases);
        match self.unnamed.counts().find(wrong) {
            Some((of, count)) => Err(format!("unnamed services {of:?}: {count} kept")),
            None => Ok(()),
        }
    }

    fn audit_lists(&self) -> Result<(), String> {
        let (mut in_pools, mut in_traces, mut in_organizations) = (0, 0, 0);
        for (at, pool) in self.pools.iter() {
            for kind in [Kind::Session, Kind::Worker] {
                let belongs = |entry: &Entry| entry.pool == at && entry.kind() == kind;
                let list =
                    Links::audit(&self.leases, pool.heads.of(kind), |it| it.in_pool, belongs);
                let list =
                    list.map_err(|slot| format!("slot {slot} is linked wrongly in pool {at}"))?;
                in_pools += list.len();
            }
        }
        for (at, trace) in self.traces.iter() {
            for kind in [Kind::Session, Kind::Worker] {
                let belongs = |entry: &Entry| self.trace_of(entry) == at && entry.kind() == kind;
                let list =
                    Links::audit(&self.leases, trace.heads.of(kind), |it| it.in_trace, belongs);
                let list =
                    list.map_err(|slot| format!("slot {slot} is linked wrongly in trace {at}"))?;
                in_traces += list.len();
            }
        }
        let with_trace = self.leases.iter().filter(|(_, entry)| entry.cell != NONE).count();
        if in_pools != self.leases.len() || in_traces != with_trace {
            return Err("a lease is in no list of its pool or trace".to_owned());
        }
        for (at, organization) in self.organizations.iter() {
            let belongs = |pool: &Pool| pool.organization == at;
            let list =
                Links::audit(&self.pools, organization.head, |it| it.in_organization, belongs);
            let list =
                list.map_err(|pool| format!("pool {pool} is linked wrongly in organization {at}"))?;
            in_organizations += list.len();
        }
        if in_organizations != self.pools.len() {
            return Err("a pool is in no list of its organization".to_owned());
        }
        Ok(())
    }

    /// Recomputes which traces of a pool have how many leases.
    fn audit_ranking(&self) -> Result<(), String> {
        let mut traces: HashMap<(u32, &str), u64> = HashMap::new();
        for (_, cell) in self.cells.iter() {
            let trace = (cell.pool, &*self.traces[cell.trace].id);
            *traces.entry(trace).or_insert(0) += u64::from(cell.leases);
        }
        let (mut ranked, mut levels) = (0, 0);
        for (at, pool) in self.pools.iter() {
            let (mut level, mut above, mut more) = (pool.top, NONE, u64::MAX);
            while let Some(here) = self.levels.get(level) {
                let leases = u64::from(here.leases.get());
                if leases >= more || here.above != above || here.head == NONE {
                    return Err(format!("level {level} is out of order in pool {at}"));
                }
                let (mut cell, mut before) = (here.head, NONE);
                while cell != NONE {
                    let Rank::Represents { level: on, next, prev } = self.cells[cell].rank else {
                        return Err(format!("cell {cell} is ranked behind another"));
                    };
                    let trace = (at, &*self.traces[self.cells[cell].trace].id);
                    let counts = traces.get(&trace) == Some(&leases) && self.cells[cell].pool == at;
                    if !counts || on != level || prev != before {
                        return Err(format!("cell {cell} is ranked wrongly in pool {at}"));
                    }
                    ranked += 1;
                    (before, cell) = (cell, next);
                }
                levels += 1;
                (above, more, level) = (level, leases, here.below);
            }
            if pool.bottom != above {
                return Err(format!("the last level of pool {at} is not its bottom"));
            }
        }
        for (at, cell) in self.cells.iter() {
            let Rank::Behind { first } = cell.rank else { continue };
            let stands = self.cells.get(first).is_some_and(|first| {
                matches!(first.rank, Rank::Represents { .. })
                    && first.pool == cell.pool
                    && self.traces[first.trace].id == self.traces[cell.trace].id
            });
            if !stands {
                return Err(format!("no cell represents cell {at}"));
            }
        }
        if ranked != traces.len() || levels != self.levels.len() {
            return Err("a trace or a level is in no order of its pool".to_owned());
        }
        Ok(())
    }
}

/// Compares kept counts with recomputed ones: how often each number comes in `counted`.
fn same(
    what: &str,
    kept: impl Iterator<Item = (u32, u64)>,
    counted: impl Iterator<Item = u32>,
) -> Result<(), String> {
    let mut recomputed: HashMap<u32, u64> = HashMap::new();
    counted.for_each(|at| *recomputed.entry(at).or_insert(0) += 1);
    let mut seen = 0;
    for (at, count) in kept {
        let expected = recomputed.get(&at).copied().unwrap_or(0);
        if count != expected {
            return Err(format!("{what} {at}: {count} kept, {expected} in the table"));
        }
        // A trace may have no session and a cell no worker; nothing else is kept empty.
        if expected == 0 && what.starts_with("leases") {
            return Err(format!("{what} {at}: kept without a lease"));
        }
        seen += usize::from(expected > 0);
    }
    if seen == recomputed.len() { Ok(()) } else { Err(format!("{what}: a record is missing")) }
}
