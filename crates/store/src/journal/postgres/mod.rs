//! The journal of a fleet, in PostgreSQL or a database that speaks its protocol.
//!
//! Nothing here needs a session of the database, so that a pooler may stand between: statements are
//! unnamed, settings are local to a transaction, and there are no advisory locks.

pub(crate) mod commit;
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
use crate::fleet::{Answer, FleetSecret, JournalRow, LeaderId, MemberId, Request, Rows as Seen};
use crate::journal::engine::{Attempt, Elections, Facts, FleetJournal, Meeting, Unanswered};
use crate::journal::rows::Rows;
use crate::journal::{Restored, Snapshot, Stamp};

use connection::Connection;
pub(crate) use elections::PostgresElections;
use failure::Failure;
use load::leader;
pub(crate) use settings::Settings;

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        if failure.is_full() { Self::Full(text) } else { Self::Failed(text) }
    }
}

impl Elections for PostgresElections {
    fn secret(&self) -> FleetSecret {
        self.secret
    }

    fn newest_version(&self) -> i32 {
        schema::VERSION
    }

    fn carry_out(&mut self, request: &Request, within: Duration) -> Result<Answer, Unanswered> {
        Ok(Self::carry_out(self, request, within)?)
    }

    fn rewrite(
        &mut self,
        seen: &Seen,
        new: &Seen,
        content: Snapshot,
        within: Duration,
    ) -> Result<Answer, Unanswered> {
        Ok(Self::rewrite(self, seen, new, content, within)?)
    }

    fn meet(&mut self, facts: &Facts<'_>, within: Duration) -> Result<Meeting, Unanswered> {
        Ok(Self::meet(self, facts, within)?)
    }

    fn leave(&mut self, id: MemberId, within: Duration) -> Result<(), Unanswered> {
        Ok(Self::leave(self, id, within)?)
    }

    fn migrate(&mut self, leader: LeaderId, within: Duration) -> Result<bool, Unanswered> {
        Ok(Self::migrate(self, leader, within)?)
    }

    fn journal(&self) -> Result<Box<dyn FleetJournal>, Error> {
        Ok(Box::new(PostgresJournal::new(self.connection.settings().clone())?))
    }
}

/// The connection of a server for its journal.
#[derive(Debug)]
pub(crate) struct PostgresJournal {
    connection: Connection,
}

impl PostgresJournal {
    fn new(settings: Settings) -> Result<Self, Error> {
        Ok(Self { connection: Connection::new(settings)? })
    }
}

impl FleetJournal for PostgresJournal {
    fn load(&mut self, restored: &mut Restored, within: Duration) -> Result<Stamp, Unanswered> {
        let loaded = self.connection.run(within, async |client, schema| {
            load::load(client, schema, restored).await.map_err(|error| match error {
                load::LoadError::Database(error) => Failure::Database(error),
                other => Failure::Other(other.to_string()),
            })
        });
        Ok(loaded?)
    }

    fn commit(
        &mut self,
        batch: &Rows,
        stamp: Stamp,
        seen: JournalRow,
        new: JournalRow,
        within: Duration,
    ) -> Result<Attempt, Unanswered> {
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
        });
        Ok(attempt?)
    }

    fn raise(&mut self, leader: LeaderId, within: Duration) -> Result<JournalRow, Unanswered> {
        let mine = leader.to_string();
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
        });
        Ok(row?)
    }
}

fn journal_row(row: &tokio_postgres::Row) -> Result<JournalRow, load::LoadError> {
    let number = |at| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
    Ok(JournalRow { leader: leader(row, 0)?, sequence: number(1)?, attempt: number(2)? })
}

/// Begins a transaction whose locks and statements end in time, and whose commit is durable.
pub(crate) fn begin(within: Duration) -> String {
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
