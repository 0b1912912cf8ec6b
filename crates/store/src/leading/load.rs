//! The beginning of a term: the journal is read.

use std::time::Duration;

use crate::error::Error;
use crate::fleet::JournalRow;
use crate::journal::Restored;
use crate::journal::engine::FleetJournal;
use crate::journal::term_journal::TermJournal;
use crate::options::Options;
use crate::shared::Shared;
use crate::term::Term;

/// How long reading the whole journal may take.
const LOAD_WITHIN: Duration = Duration::from_secs(120);

/// How long a new leader waits before it reads the journal again after a failure.
const LOAD_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Reads the journal until that succeeds, and begins the term. Returns `None` when the term is over.
pub(super) fn lead(
    shared: &Shared,
    connection: Box<dyn FleetJournal>,
    options: &Options,
    row: JournalRow,
    term: &Term,
) -> Result<Option<(TermJournal, u64)>, Error> {
    let mut journal = TermJournal::new(connection, row);
    while !term.is_over() {
        let mut restored: Restored = options.nothing_restored(true)?;
        match journal.load(&mut restored, LOAD_WITHIN) {
            Ok(stamp) => {
                let leases = restored.ledger.len();
                let number = shared.lead(restored, stamp, term);
                tracing::info!(leases, "serves as the leader of the fleet");
                return Ok(number.map(|number| (journal, number)));
            }
            Err(error) => {
                tracing::warn!(%error, "the journal cannot be read");
                if shared.wait_for_closing(LOAD_AGAIN_AFTER) {
                    return Ok(None);
                }
            }
        }
    }
    Ok(None)
}
