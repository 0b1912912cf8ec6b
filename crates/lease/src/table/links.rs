//! Lists that run through the table.

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
