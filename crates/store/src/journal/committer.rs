//! The commits of one term, on any engine.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{Attempt, Unanswered};
use super::rows::Rows;
use super::term_journal::TermJournal;
use super::{Journal, Restored, Stamp};
use crate::error::Error;
use crate::fleet::Resolved;
use crate::term::{Next, Rewritten, Term};

/// The journal of one term: it commits until that happened, or the term is over.
#[derive(Debug)]
pub(crate) struct Committer {
    journal: TermJournal,
    term: Arc<Term>,
    within: Duration,
    /// The number of the batch in this term.
    batch: u64,
}

/// How long after a failure a commit is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

impl Committer {
    /// Commits with `journal` for `term`; each request may take `within`.
    pub(crate) fn new(journal: TermJournal, term: Arc<Term>, within: Duration) -> Self {
        Self { journal, term, within, batch: 0 }
    }

    /// Tries once to commit the batch, or to find out what became of an earlier try. Returns whether
    /// the batch is committed.
    fn try_once(
        &mut self,
        batch: &Rows,
        stamp: Stamp,
        is_known: &mut bool,
    ) -> Result<bool, Unanswered> {
        if *is_known {
            *is_known = false;
            return Ok(self.journal.commit(batch, stamp, self.within)? == Attempt::Committed);
        }
        match self.journal.resolve(self.within)? {
            Resolved::Committed => return Ok(true),
            Resolved::NotCommitted => *is_known = true,
            Resolved::Lost | Resolved::OtherLeader => {
                self.term.doubt();
                std::thread::sleep(TRY_AGAIN_AFTER);
            }
        }
        Ok(false)
    }
}

impl Journal for Committer {
    fn load(&mut self, restored: &mut Restored) -> Result<Stamp, Error> {
        let failed = |error: Unanswered| Error::Failed { problem: error.to_string() };
        self.journal.load(restored, self.within).map_err(failed)
    }

    fn commit(&mut self, batch: &Rows, stamp: Stamp) -> Result<(), Error> {
        let (mut is_known, mut is_warned) = (true, false);
        self.batch += 1;
        loop {
            match self.term.next() {
                Next::End => return Err(Error::Deposed),
                Next::Wait => std::thread::sleep(TRY_AGAIN_AFTER),
                Next::GoOnFrom(Rewritten { row, batches }) => {
                    self.journal.set_fence(row);
                    if self.batch <= batches {
                        // The batch is part of what was written.
                        return Ok(());
                    }
                    is_known = true;
                }
                Next::Commit => match self.try_once(batch, stamp, &mut is_known) {
                    Ok(true) => {
                        self.term.committed(self.journal.sequence());
                        return Ok(());
                    }
                    Ok(false) => {}
                    Err(error) => {
                        if !is_warned {
                            tracing::warn!(%error, "a commit is tried again until its outcome is known");
                        }
                        is_warned = true;
                        std::thread::sleep(TRY_AGAIN_AFTER);
                    }
                },
            }
        }
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}
