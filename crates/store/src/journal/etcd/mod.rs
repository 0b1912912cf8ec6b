//! The journal of a fleet, in etcd: rows are keys, and a batch is one transaction that compares the journal
//! key.
//!
//! No lease and no clock of etcd decides anything. A quorum of its members acknowledges each change, so
//! nothing that was acknowledged is lost with one of them.

mod client;
pub(crate) mod copying;
mod elections;
mod messages;
mod settings;
mod staged;

use std::time::Duration;

use self::client::{Client, equals, get, put, value};
use self::messages::{
    CompactionRequest, CompactionResponse, RangeRequest, RangeResponse, RequestOp,
};
use super::engine::{Attempt, FleetJournal, Unanswered};
use super::fleet_text::{journal_row, journal_text, stamp, stamp_text};
use super::keys::{self, Reading, TABLES, end_of};
use super::rows::Rows;
use super::{Restored, Stamp};
use crate::error::Error;
use crate::fleet::{JournalRow, LeaderId};

pub(crate) use elections::EtcdElections;
pub(crate) use settings::Settings;

/// After how many revisions the leader compacts those before, and how many of the last it keeps.
const COMPACT_EVERY: i64 = 10_000;
const KEPT_REVISIONS: i64 = 1_000;

/// The keys of one page: a row has less than 2 KiB, and an answer 4 MiB at most.
const PAGE: i64 = 1_000;

/// The connection of a leader for its journal.
#[derive(Debug)]
pub(crate) struct EtcdJournal {
    client: Client,
    /// Whether the last batch was committed in parts, which are to be applied.
    is_staged: bool,
    /// The revision of the last compaction.
    compacted: i64,
}

impl EtcdJournal {
    fn new(settings: Settings) -> Result<Self, Error> {
        Ok(Self { client: Client::new(settings)?, is_staged: false, compacted: 0 })
    }

    fn compact_if_due(&mut self, revision: i64, within: Duration) {
        if revision - self.compacted < COMPACT_EVERY {
            return;
        }
        self.compacted = revision;
        let request = CompactionRequest { revision: revision - KEPT_REVISIONS };
        let compacted = self.client.call::<CompactionResponse>("KV/Compact", &request, within);
        if let Err(error) = compacted {
            // Another one may have compacted more. The next try comes soon enough.
            tracing::debug!(%error, "old revisions of etcd are not compacted");
        }
    }
}

impl FleetJournal for EtcdJournal {
    fn load(&mut self, restored: &mut Restored, within: Duration) -> Result<Stamp, Unanswered> {
        load(&mut self.client, restored, within)
    }

    fn commit(
        &mut self,
        batch: &Rows,
        stamp: Stamp,
        seen: JournalRow,
        new: JournalRow,
        within: Duration,
    ) -> Result<Attempt, Unanswered> {
        let client = &mut self.client;
        if std::mem::take(&mut self.is_staged) {
            staged::finish(client, within)?;
        }
        let compare = vec![equals(client.key("journal"), journal_text(seen))];
        let parts = staged::parts(keys::changes(&client.key(""), batch, stamp.time));
        let (id, head) = (format!("{}-{}", new.leader, new.sequence), counters(client, new, stamp));
        let Some(written) = staged::write(client, &id, compare, head, parts, within)? else {
            // An earlier batch in parts whose outcome was unknown may have to be applied first.
            staged::finish(client, within)?;
            return Ok(Attempt::Differs);
        };
        self.is_staged = written.is_staged;
        self.compact_if_due(written.revision, within);
        Ok(Attempt::Committed)
    }

    fn raise(&mut self, leader: LeaderId, within: Duration) -> Result<JournalRow, Unanswered> {
        let key = self.client.key("journal");
        let client = &mut self.client;
        let read = client.read(vec![get(key.clone())], within)?;
        let row = value(&read, 0).and_then(journal_row);
        let row = row.ok_or_else(|| Unanswered::Failed("its journal cannot be read".to_owned()))?;
        if row.leader != leader {
            return Ok(row);
        }
        let raised = JournalRow { attempt: row.attempt + 1, ..row };
        let is_same = vec![equals(key.clone(), journal_text(row))];
        let raise = vec![put(key, journal_text(raised))];
        if client.transact(is_same, raise, vec![], within)?.succeeded {
            return Ok(raised);
        }
        Err(Unanswered::Failed("its journal has just changed".to_owned()))
    }
}

/// Restores all rows, and returns the stamp of the last batch. A batch in parts is applied first.
fn load(
    client: &mut Client,
    restored: &mut Restored,
    within: Duration,
) -> Result<Stamp, Unanswered> {
    staged::finish(client, within)?;
    let read = client.read(vec![get(client.key("stamp"))], within)?;
    let stamp = value(&read, 0).and_then(stamp);
    let stamp = stamp.ok_or_else(|| Unanswered::Failed("its stamp cannot be read".to_owned()))?;
    let revision = read.header.unwrap_or_default().revision;
    let mut reading = Reading::new(restored, stamp);
    for table in TABLES {
        let prefix = client.key(table);
        let (range_end, mut key) = (end_of(&prefix), prefix.clone());
        loop {
            let range_end = range_end.clone();
            let request = RangeRequest { key, range_end, limit: PAGE, revision };
            let page: RangeResponse = client.call("KV/Range", &request, within)?;
            for row in &page.kvs {
                reading.read(table, &row.key[prefix.len()..], &row.value)?;
            }
            let Some(last) = page.kvs.last().filter(|_| page.more) else { break };
            key = [&*last.key, &[0]].concat();
        }
    }
    reading.finish()
}

/// The operations that write the journal row and the stamp.
fn counters(client: &Client, new: JournalRow, stamp: Stamp) -> Vec<RequestOp> {
    let (journal, stamp) = (journal_text(new), stamp_text(stamp));
    vec![put(client.key("journal"), journal), put(client.key("stamp"), stamp)]
}

#[cfg(test)]
pub(super) mod tests;
