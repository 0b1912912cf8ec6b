//! The statements of a leader on PostgreSQL, for a client that is no server.

use std::time::Duration;

use lease::{Config, Ledger, Request, Terms, Timestamp};
use tokio_postgres::types::{ToSql, Type};

use crate::fleet::{JournalRow, LeaderId};
use crate::journal::Stamp;
use crate::journal::postgres::begin;
use crate::journal::postgres::commit::{self, statement};
use crate::journal::rows::Rows;

/// The batches of a leader that has ended, continued without a server.
#[derive(Debug)]
pub struct Batches {
    schema: String,
    row: JournalRow,
    now: Timestamp,
    ledger: Ledger,
}

/// The statement that commits one batch. It returns 1, or 0 if the journal has another leader.
#[derive(Debug)]
pub struct Batch(commit::Statement);

impl Batch {
    pub fn sql(&self) -> &str {
        &self.0.sql
    }

    pub fn parameters(&self) -> Vec<(&(dyn ToSql + Sync), Type)> {
        self.0.parameters()
    }
}

impl Batches {
    /// The query whose row [`Batches::from_row`] reads.
    pub const QUERY: &str = "SELECT leader, sequence, attempt, store_time, next_serial \
                             FROM tgm_session.journal";

    /// Begins the transaction around a batch, as a leader does whose requests may take `within`.
    pub fn begin(within: Duration) -> String {
        begin(within)
    }

    /// Continues the journal that this row describes.
    ///
    /// # Panics
    ///
    /// The row is not one of [`Batches::QUERY`].
    pub fn from_row(row: &tokio_postgres::Row) -> Self {
        let leader: String = row.get(0);
        let number = |at| row.get::<_, i64>(at).cast_unsigned();
        let leader = u128::from_str_radix(&leader, 16).expect("the id of a leader");
        let mut ledger = Ledger::new(Config { journal: true, ..Config::default() });
        let now = Timestamp::from_nanos(number(3));
        ledger.resume(now, number(4), now);
        Self {
            schema: "\"tgm_session\"".to_owned(),
            row: JournalRow { leader: LeaderId(leader), sequence: number(1), attempt: number(2) },
            now,
            ledger,
        }
    }

    /// The batch that grants these requests.
    ///
    /// # Panics
    ///
    /// A request is invalid.
    pub fn grant<'r>(
        &mut self,
        requests: impl IntoIterator<Item = Request<'r>>,
        terms: &Terms<'_>,
    ) -> Batch {
        for request in requests {
            self.ledger.borrow(&request, terms, self.now).expect("there is no limit");
        }
        let rows = Rows::collect(self.ledger.drain_changes().collect(), Vec::new());
        let stamp = Stamp { time: self.now, next_serial: self.ledger.next_serial() };
        let next = JournalRow { sequence: self.row.sequence + 1, ..self.row };
        let seen = std::mem::replace(&mut self.row, next);
        Batch(statement(&self.schema, &rows, stamp, seen, next))
    }
}
