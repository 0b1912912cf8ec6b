//! Lists that run through the table.

use std::collections::HashSet;
use std::ops::{Index, IndexMut};

use crate::lease::Kind;
use crate::slab::NONE;

/// Neighbours in a list that runs through the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    pub(super) next: u32,
    pub(super) prev: u32,
}

impl Links {
    pub(super) const NONE: Self = Self { next: NONE, prev: NONE };

    /// Takes the record that has these links out of the list that begins at `head`. `of` tells which
    /// links of a record are those of the list.
    pub(super) fn leave<R>(
        self,
        records: &mut impl IndexMut<u32, Output = R>,
        head: &mut u32,
        of: impl Fn(&mut R) -> &mut Self,
    ) {
        let Self { next, prev } = self;
        if next != NONE {
            of(&mut records[next]).prev = prev;
        }
        match prev {
            NONE => *head = next,
            prev => of(&mut records[prev]).next = next,
        }
    }

    /// Puts a record first into the list that begins at `head`.
    pub(super) fn enter<R>(
        records: &mut impl IndexMut<u32, Output = R>,
        head: &mut u32,
        record: u32,
        of: impl Fn(&mut R) -> &mut Self,
    ) {
        let next = std::mem::replace(head, record);
        of(&mut records[record]).next = next;
        if next != NONE {
            of(&mut records[next]).prev = record;
        }
    }

    /// Checks the list that begins at `head`: its links, and that each record `belongs` to it. Answers
    /// the records, or the first that is wrong.
    pub(super) fn audit<R>(
        records: &impl Index<u32, Output = R>,
        head: u32,
        of: impl Fn(&R) -> Self,
        belongs: impl Fn(&R) -> bool,
    ) -> Result<HashSet<u32>, u32> {
        let (mut list, mut at, mut before) = (HashSet::new(), head, NONE);
        while at != NONE {
            let Self { next, prev } = of(&records[at]);
            if !belongs(&records[at]) || prev != before || !list.insert(at) {
                return Err(at);
            }
            (before, at) = (at, next);
        }
        Ok(list)
    }
}

/// The first of a list of sessions and of one of workers.
///
/// The two are apart, so that the workers of a pool can be revoked before its sessions, and a session
/// of a trace is found without looking at workers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) sessions: u32,
    pub(super) workers: u32,
}

impl Heads {
    pub(super) const EMPTY: Self = Self { sessions: NONE, workers: NONE };

    pub(super) const fn of(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Session => self.sessions,
            Kind::Worker => self.workers,
        }
    }

    pub(super) const fn of_mut(&mut self, kind: Kind) -> &mut u32 {
        match kind {
            Kind::Session => &mut self.sessions,
            Kind::Worker => &mut self.workers,
        }
    }

    pub(super) const fn are_empty(&self) -> bool {
        self.sessions == NONE && self.workers == NONE
    }
}
