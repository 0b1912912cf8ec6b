//! The traces of each pool, ordered by how many leases they have there.
//!
//! A trace counts once in a pool whichever indexers hold leases under its id: one of their cells
//! *represents* all of them. The cells that represent traces of the same number of leases are a
//! list, a *level*, and the levels of a pool are a list too, from the most leases to the fewest. A
//! lease more or less moves a trace to the neighbouring level: nothing is ever sorted.

use std::num::NonZeroU32;

use super::Table;
use super::scopes::{Cell, Level, Pool, Rank};
use crate::records::Record as _;
use crate::slab::NONE;

impl Table {
    /// The cell that represents the trace of `cell`, and its level.
    pub(super) fn representative(&self, cell: u32) -> (u32, u32) {
        let first = match self.cells[cell].rank {
            Rank::Represents { level, .. } => return (cell, level),
            Rank::Behind { first } => first,
        };
        match self.cells[first].rank {
            Rank::Represents { level, .. } => (first, level),
            Rank::Behind { .. } => {
                unreachable!("a cell that represents a trace is behind no other")
            }
        }
    }

    /// Counts one more lease for the trace of `cell`; `others` is another cell of that trace in the
    /// pool, if there is one, and `is_new` says that `cell` has no rank yet.
    pub(super) fn rank_up(&mut self, cell: u32, is_new: bool, others: u32) {
        if is_new && others == NONE {
            let pool = self.cells[cell].pool;
            self.enter(cell, NonZeroU32::MIN, self.pools[pool].bottom, NONE);
            return;
        }
        if is_new {
            let (first, _) = self.representative(others);
            self.cells[cell].rank = Rank::Behind { first };
        }
        let (first, level) = self.representative(cell);
        let Level { leases, above, .. } = self.levels[level];
        self.move_to(first, leases.saturating_add(1), level, above);
    }

    /// Counts one lease less for the trace of `cell`. Answers whether it has none left in the pool.
    pub(super) fn rank_down(&mut self, cell: u32) -> bool {
        let (first, level) = self.representative(cell);
        let Level { leases, below, .. } = self.levels[level];
        match NonZeroU32::new(leases.get() - 1) {
            Some(fewer) => {
                self.move_to(first, fewer, below, level);
                false
            }
            None => {
                self.leave(first);
                true
            }
        }
    }

    /// Lets another cell of the same trace represent it, because `cell` is removed.
    pub(super) fn hand_over(&mut self, cell: u32) {
        let Cell { trace, pool, rank, .. } = self.cells[cell];
        let Rank::Represents { level, next, prev } = rank else { return };
        let key = self.traces[trace].key();
        let others: Vec<u32> = self
            .traces
            .all(key)
            .map(|other| self.find_cell(other, pool))
            .filter(|&other| other != NONE && other != cell)
            .collect();
        let Some((&first, others)) = others.split_first() else { return };
        self.cells[first].rank = rank;
        for &other in others {
            self.cells[other].rank = Rank::Behind { first };
        }
        self.set_next(prev, level, first);
        self.set_prev(next, first);
    }

    /// Moves a cell to the level of `leases`, which is `below` or `above` or lies between the two.
    fn move_to(&mut self, cell: u32, leases: NonZeroU32, below: u32, above: u32) {
        let (_, from) = self.representative(cell);
        let there = [below, above]
            .into_iter()
            .any(|level| level != from && level != NONE && self.levels[level].leases == leases);
        let Rank::Represents { next, prev, .. } = self.cells[cell].rank else { return };
        if !there && next == NONE && prev == NONE {
            // It is alone in its level, and the new level does not exist.
            self.levels[from].leases = leases;
            return;
        }
        // First into the new level, so that the old one is there as a neighbour of it.
        self.unlink_cell(cell);
        self.enter(cell, leases, above, below);
        if self.levels[from].head == NONE {
            self.remove_level(self.cells[cell].pool, from);
        }
    }

    /// Puts a cell into the level of `leases`, which is `above` or `below` or comes between.
    fn enter(&mut self, cell: u32, leases: NonZeroU32, above: u32, below: u32) {
        let found = [above, below]
            .into_iter()
            .find(|&level| self.levels.get(level).is_some_and(|level| level.leases == leases));
        let level = found.unwrap_or_else(|| {
            let pool = self.cells[cell].pool;
            let level = self.levels.insert(Level { leases, head: NONE, above, below });
            match above {
                NONE => self.pools[pool].top = level,
                above => self.levels[above].below = level,
            }
            match below {
                NONE => self.pools[pool].bottom = level,
                below => self.levels[below].above = level,
            }
            level
        });
        let next = std::mem::replace(&mut self.levels[level].head, cell);
        self.set_prev(next, cell);
        self.cells[cell].rank = Rank::Represents { level, next, prev: NONE };
    }

    fn leave(&mut self, cell: u32) {
        let (_, level) = self.representative(cell);
        self.unlink_cell(cell);
        if self.levels[level].head == NONE {
            self.remove_level(self.cells[cell].pool, level);
        }
    }

    fn unlink_cell(&mut self, cell: u32) {
        if let Rank::Represents { level, next, prev } = self.cells[cell].rank {
            self.set_next(prev, level, next);
            self.set_prev(next, prev);
        }
    }

    fn remove_level(&mut self, pool: u32, level: u32) {
        let Some(Level { above, below, .. }) = self.levels.remove(level) else { return };
        match above {
            NONE => self.pools[pool].top = below,
            above => self.levels[above].below = below,
        }
        match below {
            NONE => self.pools[pool].bottom = above,
            below => self.levels[below].above = above,
        }
    }

    /// Lets `to` follow `cell`, or come first in `level` where there is no such cell.
    fn set_next(&mut self, cell: u32, level: u32, to: u32) {
        match self.cells.get_mut(cell).map(|cell| &mut cell.rank) {
            Some(Rank::Represents { next, .. }) => *next = to,
            _ => self.levels[level].head = to,
        }
    }

    fn set_prev(&mut self, cell: u32, to: u32) {
        if let Some(Rank::Represents { prev, .. }) =
            self.cells.get_mut(cell).map(|cell| &mut cell.rank)
        {
            *prev = to;
        }
    }
}

/// How far a reading of the traces of a pool has come.
#[derive(Clone, Debug, Default)]
pub(crate) struct TracesRead {
    /// The level read last, by its number of leases.
    leases: Option<NonZeroU32>,
    /// The cells of it that the last part showed, in order.
    cells: Vec<u32>,
    done: bool,
}

impl TracesRead {
    /// Whether all traces were shown.
    pub(crate) const fn is_done(&self) -> bool {
        self.done
    }
}

impl Table {
    /// The next traces of a pool, at most `most` of them, those with the most leases first.
    ///
    /// What moves between two parts may show twice or not at all.
    pub(crate) fn next_traces(
        &self,
        organization: &str,
        service: &str,
        most: usize,
        read: &mut TracesRead,
    ) -> Vec<(Box<str>, u64)> {
        let mut traces = Vec::new();
        let (mut level, mut cell) = self.read_on(self.find_pool(organization, service), most, read);
        while let Some(Level { leases, below, .. }) = self.levels.get(level)
            && traces.len() < most
        {
            if read.leases != Some(*leases) {
                (read.leases, read.cells) = (Some(*leases), Vec::new());
            }
            while let Some(Cell { trace, rank: Rank::Represents { next, .. }, .. }) =
                self.cells.get(cell)
                && traces.len() < most
            {
                traces.push((self.traces[*trace].id.clone(), u64::from(leases.get())));
                read.cells.push(cell);
                cell = *next;
            }
            if cell == NONE {
                level = *below;
                cell = self.levels.get(level).map_or(NONE, |level| level.head);
            }
        }
        read.done = level == NONE;
        // Enough to find the place again.
        let old = read.cells.len().saturating_sub(most);
        read.cells.drain(..old);
        traces
    }

    /// The level and the cell at which to read on.
    fn read_on(&self, pool: u32, most: usize, read: &TracesRead) -> (u32, u32) {
        let head = |level| self.levels.get(level).map_or(NONE, |level: &Level| level.head);
        let Some(Pool { top, .. }) = self.pools.get(pool) else { return (NONE, NONE) };
        // After the last shown cell that is still at its level.
        for &shown in read.cells.iter().rev() {
            if let Some(Cell { pool: of, rank: Rank::Represents { level, next, .. }, .. }) =
                self.cells.get(shown)
                && *of == pool
                && Some(self.levels[*level].leases) == read.leases
            {
                let below = self.levels[*level].below;
                return if *next == NONE { (below, head(below)) } else { (*level, *next) };
            }
        }
        let mut level = *top;
        for _ in 0..most {
            match (self.levels.get(level), read.leases) {
                (Some(at), Some(read)) if at.leases > read => level = at.below,
                _ => return (level, head(level)),
            }
        }
        (NONE, NONE)
    }
}
