//! Recomputing every count from the table.

use std::collections::{HashMap, HashSet};

use crate::lease::Kind;
use crate::slab::NONE;

use super::Table;
use super::links::Links;
use super::scopes::Rank;

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
        self.audit_organizations()?;
        self.audit_ranking()
    }

    fn audit_counts(&self) -> Result<(), String> {
        let (mut services, mut pools, mut keys) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (mut sessions, mut cells, mut workers) =
            (HashMap::new(), HashMap::new(), HashMap::new());
        let (mut sessions_of_pool, mut workers_of_trace) = (HashMap::new(), HashMap::new());
        let mut traces_of_pool: HashMap<u32, HashSet<&str>> = HashMap::new();
        for (_, entry) in self.leases.iter() {
            *services.entry(self.pools[entry.pool].service).or_insert(0) += 1;
            *pools.entry(entry.pool).or_insert(0) += 1;
            if entry.kind() == Kind::Session {
                *sessions_of_pool.entry(entry.pool).or_insert(0) += 1;
            }
            *keys.entry(entry.key).or_insert(0) += 1;
            if let Some(cell) = self.cells.get(entry.cell) {
                *cells.entry(entry.cell).or_insert(0) += 1;
                traces_of_pool.entry(entry.pool).or_default().insert(&self.traces[cell.trace].id);
                match entry.kind() {
                    Kind::Session => *sessions.entry(cell.trace).or_insert(0) += 1,
                    Kind::Worker => {
                        *workers.entry(entry.cell).or_insert(0) += 1;
                        *workers_of_trace.entry(cell.trace).or_insert(0) += 1;
                    }
                }
            }
        }
        keys.remove(&NONE);
        let kept = self.services.iter().map(|(at, service)| (at, service.leases));
        same("leases of service", kept, &services)?;
        same("leases of pool", self.pools.iter().map(|(at, pool)| (at, pool.leases)), &pools)?;
        same("leases of API key", self.keys.iter().map(|(at, key)| (at, key.leases)), &keys)?;
        let kept = self.cells.iter().map(|(at, cell)| (at, u64::from(cell.leases)));
        same("leases of cell", kept, &cells)?;
        let kept = self.cells.iter().map(|(at, cell)| (at, u64::from(cell.workers)));
        same("workers of cell", kept, &workers)?;
        let kept = self.traces.iter().map(|(at, trace)| (at, u64::from(trace.sessions)));
        same("sessions of trace", kept, &sessions)?;
        let kept = self.traces.iter().map(|(at, trace)| (at, u64::from(trace.workers)));
        same("workers of trace", kept, &workers_of_trace)?;
        let kept = self.pools.iter().map(|(at, pool)| (at, u64::from(pool.sessions)));
        same("sessions of pool", kept, &sessions_of_pool)?;
        let traces: HashMap<u32, u64> =
            traces_of_pool.into_iter().map(|(pool, traces)| (pool, traces.len() as u64)).collect();
        same("traces of pool", self.pools.iter().map(|(at, pool)| (at, pool.traces)), &traces)?;
        let mut of_organization = HashMap::new();
        for (_, pool) in self.pools.iter() {
            *of_organization.entry(pool.organization).or_insert(0) += 1;
        }
        let kept = self.organizations.iter().map(|(at, record)| (at, u64::from(record.pools)));
        same("pools of organization", kept, &of_organization)
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
        let (mut in_pools, mut in_traces) = (HashSet::new(), HashSet::new());
        for (at, pool) in self.pools.iter() {
            for (kind, head) in KINDS.map(|kind| (kind, pool.heads.of(kind))) {
                let (mut slot, mut prev) = (head, NONE);
                while slot != NONE {
                    let entry = &self.leases[slot];
                    let belongs = entry.pool == at && entry.kind() == kind;
                    if !belongs || entry.in_pool.prev != prev || !in_pools.insert(slot) {
                        return Err(format!("slot {slot} is linked wrongly in pool {at}"));
                    }
                    (prev, slot) = (slot, entry.in_pool.next);
                }
            }
        }
        for (at, trace) in self.traces.iter() {
            for (kind, head) in KINDS.map(|kind| (kind, trace.heads.of(kind))) {
                let (mut slot, mut prev) = (head, NONE);
                while slot != NONE {
                    let entry = &self.leases[slot];
                    let belongs = self.trace_of(entry) == at && entry.kind() == kind;
                    if !belongs || entry.in_trace.prev != prev || !in_traces.insert(slot) {
                        return Err(format!("slot {slot} is linked wrongly in trace {at}"));
                    }
                    (prev, slot) = (slot, entry.in_trace.next);
                }
            }
        }
        let with_trace = self.leases.iter().filter(|(_, entry)| entry.cell != NONE).count();
        if in_pools.len() != self.leases.len() || in_traces.len() != with_trace {
            return Err("a lease stands in no list of its pool or trace".to_owned());
        }
        Ok(())
    }

    fn audit_organizations(&self) -> Result<(), String> {
        let mut linked = 0;
        for (at, organization) in self.organizations.iter() {
            let (mut pool, mut before) = (organization.head, NONE);
            while pool != NONE {
                let Links { next, prev } = self.pools[pool].in_organization;
                if self.pools[pool].organization != at
                    || prev != before
                    || linked > self.pools.len()
                {
                    return Err(format!("pool {pool} is linked wrongly in organization {at}"));
                }
                linked += 1;
                (before, pool) = (pool, next);
            }
        }
        if linked != self.pools.len() {
            return Err("a pool stands in no list of its organization".to_owned());
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
                    let Rank::Stands { level: on, next, prev } = self.cells[cell].rank else {
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
                matches!(first.rank, Rank::Stands { .. })
                    && first.pool == cell.pool
                    && self.traces[first.trace].id == self.traces[cell.trace].id
            });
            if !stands {
                return Err(format!("nobody stands for cell {at}"));
            }
        }
        if ranked != traces.len() || levels != self.levels.len() {
            return Err("a trace or a level stands in no order of its pool".to_owned());
        }
        Ok(())
    }
}

const KINDS: [Kind; 2] = [Kind::Session, Kind::Worker];

/// Compares kept counts with recomputed ones.
fn same(
    what: &str,
    kept: impl Iterator<Item = (u32, u64)>,
    recomputed: &HashMap<u32, u64>,
) -> Result<(), String> {
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
