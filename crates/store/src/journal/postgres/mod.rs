//! The journal of a fleet, in PostgreSQL or a database that speaks its protocol.
//!
//! Nothing here needs a session of the database, so that a pooler may stand between: statements are
//! unnamed, settings are local to a transaction, and there are no advisory locks.

mod commit;
mod committer;
mod connection;
pub(crate) mod copying;
mod elections;
mod failure;
mod load;
mod members;
mod rewrite;
mod schema;
mod settings;
mod tls;

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};

use crate::error::Error;
use crate::fleet::{Fence, JournalRow, Resolved};
use crate::journal::rows::Rows;
use crate::journal::{Restored, Stamp};

pub(crate) use committer::Committer;
use connection::Connection;
pub(crate) use elections::PostgresElections;
pub(crate) use failure::Failure;
use load::leader;
pub(crate) use members::Facts;
pub(crate) use schema::VERSION as TABLES_VERSION;
pub(crate) use settings::Settings;

/// The outcome of one attempt to commit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Committed,
    /// The journal row was another one, so nothing happened.
    Differs,
}

/// The connection of a server for its journal.
#[derive(Debug)]
pub(crate) struct PostgresJournal {
    connection: Connection,
    fence: Fence,
}

impl PostgresJournal {
    /// A journal whose fence starts at `row`.
    pub(crate) fn new(settings: Settings, row: JournalRow) -> Result<Self, Error> {
        Ok(Self { connection: Connection::new(settings)?, fence: Fence::new(row) })
    }

    fn error(&self, error: &Failure) -> Error {
        Error::Database { url: self.connection.shown().to_owned(), problem: error.to_string() }
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.fence.sequence()
    }

    /// Restores all rows, and returns the stamp of the last batch.
    pub(crate) fn load(
        &mut self,
        restored: &mut Restored,
        within: Duration,
    ) -> Result<Stamp, Failure> {
        self.connection.run(within, async |client, schema| {
            load::load(client, schema, restored).await.map_err(|error| match error {
                load::LoadError::Database(error) => Failure::Database(error),
                other => Failure::Other(other.to_string()),
            })
        })
    }

    /// Tries once to commit a batch.
    ///
    /// # Errors
    ///
    /// Whether it happened is unknown. [`PostgresJournal::resolve`] finds it out.
    pub(crate) fn commit(
        &mut self,
        batch: &Rows,
        stamp: Stamp,
        within: Duration,
    ) -> Result<Attempt, Failure> {
        let (seen, new) = (self.fence.seen(), self.fence.next());
        let schema = self.connection.schema().to_owned();
        let statement = commit::statement(&schema, batch, stamp, seen, new);
        let begin = begin(within);
        let attempt = self.connection.run(within, async |client, _| {
            let parameters = statement.parameters();
            // The three are sent at once. If the one in the middle fails, COMMIT rolls back.
            let (begun, committed, ended) = tokio::join!(
                client.batch_execute(&begin),
                client.query_typed_one(&statement.sql, &parameters),
                client.batch_execute("COMMIT"),
            );
            begun?;
            let changed: i64 = committed?.get(0);
            ended?;
            Ok(if changed == 1 { Attempt::Committed } else { Attempt::Differs })
        })?;
        if attempt == Attempt::Committed {
            self.fence.committed();
        }
        Ok(attempt)
    }

    /// Finds out what became of the last commit. An earlier attempt cannot commit afterwards.
    pub(crate) fn resolve(&mut self, within: Duration) -> Result<Resolved, Failure> {
        let mine = self.fence.seen().leader.to_string();
        let begin = begin(within);
        let row = self.connection.run(within, async |client, schema| {
            let raise = format!(
                "UPDATE {schema}.journal SET attempt = attempt + 1 WHERE leader = $1 \
                 RETURNING leader, sequence, attempt"
            );
            let read = format!("SELECT leader, sequence, attempt FROM {schema}.journal");
            let mine = [(&mine as &(dyn ToSql + Sync), Type::TEXT)];
            let (begun, raised, read, ended) = tokio::join!(
                client.batch_execute(&begin),
                client.query_typed_opt(&raise, &mine),
                client.query_typed_one(&read, &[]),
                client.batch_execute("COMMIT"),
            );
            begun?;
            let (raised, read) = (raised?, read?);
            ended?;
            let row = raised.unwrap_or(read);
            journal_row(&row).map_err(|error| Failure::Other(error.to_string()))
        })?;
        Ok(self.fence.resolve(row))
    }

    /// Goes on from `row`: the journal was written again.
    pub(crate) fn set_fence(&mut self, row: JournalRow) {
        self.fence = Fence::new(row);
    }
}

fn journal_row(row: &tokio_postgres::Row) -> Result<JournalRow, load::LoadError> {
    let number = |at| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
    Ok(JournalRow { leader: leader(row, 0)?, sequence: number(1)?, attempt: number(2)? })
}

/// Begins a transaction whose locks and statements end in time, and whose commit is durable.
fn begin(within: Duration) -> String {
    let milliseconds = within.as_millis().max(1);
    format!(
        "BEGIN; SET LOCAL lock_timeout = {milliseconds}; \
         SET LOCAL statement_timeout = {milliseconds}; \
         SET LOCAL idle_in_transaction_session_timeout = {milliseconds}; \
         SELECT set_config('synchronous_commit', 'on', true) \
         WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )
}

#[cfg(test)]
pub(crate) mod tests;
