//! What an engine of a fleet implements: the rows that say who leads, and the journal of one term.
//!
//! The rules are above: [`Leadership`](crate::fleet::Leadership) decides what is asked for,
//! [`TermJournal`](super::term_journal::TermJournal) what a commit compares, and
//! [`Committer`](super::committer::Committer) when it is tried again.

use std::fmt;
use std::time::Duration;

use lease::WallTime;

use super::encoding::BadRow;
use super::rows::Rows;
use super::{Restored, Snapshot, Stamp};
use crate::error::Error;
use crate::fleet::{
    Answer, FleetSecret, JournalRow, LeaderId, Member, MemberId, MemberRole, Request, Rows as Seen,
};

/// A failure of the database, or no answer in time. Whether the database did anything is unknown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("{0}")]
    Failed(String),
    /// The database has no more room, and did nothing.
    #[error("{0}")]
    Full(String),
}

impl From<BadRow> for Unanswered {
    fn from(bad: BadRow) -> Self {
        Self::Failed(bad.to_string())
    }
}

impl From<lease::Invalid> for Unanswered {
    fn from(contradiction: lease::Invalid) -> Self {
        Self::Failed(format!("its rows contradict each other: {contradiction}"))
    }
}

/// The outcome of one attempt to commit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Committed,
    /// The journal row was another one, so nothing happened.
    Differs,
}

/// What a server says of itself.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) id: MemberId,
    pub(crate) address: &'a str,
    pub(crate) policy_hash: &'a str,
    pub(crate) role: MemberRole,
    /// Since when it has this role, for a database without a clock.
    pub(crate) role_since: WallTime,
    pub(crate) led: Option<u64>,
}

/// What the database says of the fleet.
#[derive(Debug)]
pub(crate) struct Meeting {
    pub(crate) members: Vec<Member>,
    /// The version of the tables.
    pub(crate) tables: i32,
}

/// The connection of a server for the rows that say who leads, and for the rows of the members.
///
/// Each method may take `within`. After an error it is unknown whether the database did anything.
pub(crate) trait Elections: fmt::Debug + Send {
    /// The secret that the servers of the fleet share.
    fn secret(&self) -> FleetSecret;

    /// The version to which this program brings the tables.
    fn newest_version(&self) -> i32;

    /// Carries out one request, which is no rewriting.
    fn carry_out(&mut self, request: &Request, within: Duration) -> Result<Answer, Unanswered>;

    /// Replaces both rows and all content of the journal, as one change, if both rows equal `seen`.
    fn rewrite(
        &mut self,
        seen: &Seen,
        new: &Seen,
        content: Snapshot,
        within: Duration,
    ) -> Result<Answer, Unanswered>;

    /// Writes the row of this server, removes those that were not seen for a minute, and reads all.
    fn meet(&mut self, facts: &Facts<'_>, within: Duration) -> Result<Meeting, Unanswered>;

    /// Removes the row of this server.
    fn leave(&mut self, id: MemberId, within: Duration) -> Result<(), Unanswered>;

    /// Brings the tables to the version of this program, if `leader` leads and every live member knows
    /// that version. Returns whether it did. An engine with one version never does.
    fn migrate(&mut self, _leader: LeaderId, _within: Duration) -> Result<bool, Unanswered> {
        Ok(false)
    }

    /// Makes a connection for the journal of a term. It connects when it is used.
    fn journal(&self) -> Result<Box<dyn FleetJournal>, Error>;
}

/// The connection of a leader for its journal.
///
/// Each method may take `within`. After an error it is unknown whether the database did anything.
pub(crate) trait FleetJournal: fmt::Debug + Send {
    /// Restores all rows, and returns the stamp of the last batch.
    fn load(&mut self, restored: &mut Restored, within: Duration) -> Result<Stamp, Unanswered>;

    /// Tries once to commit a batch: nothing of it happens unless the journal row is `seen`, and then it
    /// becomes `new`.
    fn commit(
        &mut self,
        batch: &Rows,
        stamp: Stamp,
        seen: JournalRow,
        new: JournalRow,
        within: Duration,
    ) -> Result<Attempt, Unanswered>;

    /// Raises the attempt of the journal row if it is of this leader, and returns the row. A commit that
    /// was sent before cannot happen afterwards.
    fn raise(&mut self, leader: LeaderId, within: Duration) -> Result<JournalRow, Unanswered>;
}
