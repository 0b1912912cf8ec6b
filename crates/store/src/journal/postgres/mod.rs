//! The journal of a fleet, in PostgreSQL or a database that speaks its protocol.
//!
//! Nothing here needs a session of the database, so that a pooler may stand between: statements are
//! unnamed, settings are local to a transaction, and there are no advisory locks.

mod commit;
mod connection;
pub(crate) mod copying;
mod failure;
mod load;
mod schema;
mod settings;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};

use crate::error::Error;
use crate::fleet::{
    Answer, Fence, FleetSecret, JournalRow, LeadershipRow, Request, Resolved, Rows as FleetRows,
};
use crate::journal::rows::Rows;
use crate::journal::{Journal, Restored, Stamp};
use crate::term::Term;

use commit::{Statement, signed};
use connection::Connection;
use failure::{Failure, is_lock_timeout};
use load::{ROWS, leader, rows};
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
}

fn journal_row(row: &tokio_postgres::Row) -> Result<JournalRow, load::LoadError> {
    let number = |at| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
    Ok(JournalRow { leader: leader(row, 0)?, sequence: number(1)?, attempt: number(2)? })
}

/// The journal of one term: it commits until that happened, or the term is over.
#[derive(Debug)]
pub(crate) struct Committer {
    journal: PostgresJournal,
    term: Arc<Term>,
    within: Duration,
}

/// How long after a failure a commit is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);

impl Committer {
    /// Commits with `journal` for `term`; each request may take `within`.
    pub(crate) fn new(journal: PostgresJournal, term: Arc<Term>, within: Duration) -> Self {
        Self { journal, term, within }
    }

    /// Tries once to commit the batch, or to find out what became of an earlier try. Returns whether
    /// the batch is committed.
    fn try_once(
        &mut self,
        batch: &Rows,
        stamp: Stamp,
        is_known: &mut bool,
    ) -> Result<bool, Failure> {
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
        self.journal.load(restored, self.within).map_err(|error| self.journal.error(&error))
    }

    fn commit(&mut self, batch: &Rows, stamp: Stamp) -> Result<(), Error> {
        let (mut is_known, mut is_warned) = (true, false);
        while !self.term.is_over() {
            match self.try_once(batch, stamp, &mut is_known) {
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
            }
        }
        Err(Error::Deposed)
    }

    fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

/// The connection of a server for the two rows that say who leads.
#[derive(Debug)]
pub(crate) struct PostgresElections {
    connection: Connection,
    /// The secret that the servers of the fleet share.
    pub(crate) secret: FleetSecret,
}

impl PostgresElections {
    /// Connects, and creates the tables if there are none. `secret` is that of a new fleet.
    pub(crate) fn open(
        settings: Settings,
        leader_ttl: Duration,
        secret: FleetSecret,
        within: Duration,
    ) -> Result<Self, Error> {
        let mut connection = Connection::new(settings)?;
        let shown = connection.shown().to_owned();
        let secret = connection
            .run(within, async |client, schema| {
                schema::prepare(client, schema, leader_ttl, secret).await
            })
            .map_err(|error| Error::Database { url: shown, problem: error.to_string() })?;
        Ok(Self { connection, secret })
    }

    /// Carries out one request.
    ///
    /// # Errors
    ///
    /// Whether anything was replaced is unknown.
    pub(crate) fn carry_out(
        &mut self,
        request: &Request,
        within: Duration,
    ) -> Result<Answer, Failure> {
        match request {
            Request::Read => Ok(Answer::Read(self.read(within)?)),
            Request::Replace { seen, new } => {
                let statement = replace(self.connection.schema(), seen, new);
                match self.swap(&statement, within)? {
                    Some(answer) => Ok(answer),
                    None => Ok(Answer::Differ(self.read(within)?)),
                }
            }
            Request::TakeOver { seen, new, end_blocker } => {
                if *end_blocker {
                    self.end_blocker(within)?;
                }
                let statement = take_over(self.connection.schema(), seen, new);
                match self.swap(&statement, within)? {
                    Some(answer) => Ok(answer),
                    None => Ok(Answer::Differ(self.read(within)?)),
                }
            }
            Request::Rewrite { .. } => {
                Err(Failure::Other("the journal rewrites itself".to_owned()))
            }
        }
    }

    fn read(&mut self, within: Duration) -> Result<FleetRows, Failure> {
        self.connection.run(within, async |client, schema| {
            let query = format!("SELECT {ROWS} FROM {schema}.fleet f, {schema}.journal j");
            let row = client.query_typed_one(&query, &[]).await?;
            rows(&row).map_err(|error| Failure::Other(error.to_string()))
        })
    }

    /// Runs a statement that returns the rows as they are afterwards, or none where they differ.
    fn swap(&mut self, statement: &Statement, within: Duration) -> Result<Option<Answer>, Failure> {
        let begin = begin(within);
        let swapped = self.connection.run(within + within / 4, async |client, _| {
            let parameters = statement.parameters();
            let (begun, swapped, ended) = tokio::join!(
                client.batch_execute(&begin),
                client.query_typed_opt(&statement.sql, &parameters),
                client.batch_execute("COMMIT"),
            );
            begun?;
            let swapped = swapped?;
            ended?;
            swapped
                .map(|row| rows(&row).map_err(|error| Failure::Other(error.to_string())))
                .transpose()
        });
        match swapped {
            Ok(swapped) => Ok(swapped.map(Answer::Replaced)),
            Err(Failure::Database(error)) if is_lock_timeout(&error) => Ok(Some(Answer::Blocked)),
            Err(error) => Err(error),
        }
    }

    /// Ends every transaction that holds a lock on one of the two rows.
    fn end_blocker(&mut self, within: Duration) -> Result<(), Failure> {
        self.connection.run(within, async |client, schema| {
            let query = format!(
                "SELECT count(pg_terminate_backend(pid)) FROM (SELECT DISTINCT pid FROM pg_locks \
                 WHERE relation IN ('{schema}.fleet'::regclass, '{schema}.journal'::regclass) \
                 AND mode IN ('RowExclusiveLock', 'RowShareLock') AND granted \
                 AND pid <> pg_backend_pid()) blockers",
            );
            let ended: i64 = client.query_typed_one(&query, &[]).await?.get(0);
            tracing::warn!(ended, "ended transactions of an earlier leader that held a lock");
            Ok(())
        })
    }
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

/// Compares the leadership row as a whole, and replaces it.
fn replace(schema: &str, seen: &LeadershipRow, new: &LeadershipRow) -> Statement {
    let mut statement = Statement::new();
    let set = set_leadership(&mut statement, new);
    let equals = equals_leadership(&mut statement, seen);
    statement.sql = format!(
        "WITH f AS (UPDATE {schema}.fleet SET {set} WHERE {equals} RETURNING *) \
         SELECT {ROWS} FROM f, {schema}.journal j"
    );
    statement
}

/// Locks both rows, compares them as a whole, and replaces them.
fn take_over(schema: &str, seen: &FleetRows, new: &FleetRows) -> Statement {
    let mut statement = Statement::new();
    let equals = equals_leadership(&mut statement, &seen.leadership);
    let leader = statement.add(seen.journal.leader.to_string(), Type::TEXT);
    let sequence = statement.add(signed(seen.journal.sequence), Type::INT8);
    let attempt = statement.add(signed(seen.journal.attempt), Type::INT8);
    let set = set_leadership(&mut statement, &new.leadership);
    let new_leader = statement.add(new.journal.leader.to_string(), Type::TEXT);
    let new_sequence = statement.add(signed(new.journal.sequence), Type::INT8);
    let new_attempt = statement.add(signed(new.journal.attempt), Type::INT8);
    statement.sql = format!(
        "WITH seen AS (SELECT FROM {schema}.journal, {schema}.fleet \
         WHERE {equals} AND journal.leader = ${leader} AND sequence = ${sequence} \
         AND attempt = ${attempt} FOR UPDATE), \
         j AS (UPDATE {schema}.journal SET leader = ${new_leader}, sequence = ${new_sequence}, \
         attempt = ${new_attempt} FROM seen RETURNING leader, sequence, attempt), \
         f AS (UPDATE {schema}.fleet SET {set} FROM seen RETURNING fleet.*) \
         SELECT {ROWS} FROM f, j"
    );
    statement
}

fn equals_leadership(statement: &mut Statement, row: &LeadershipRow) -> String {
    let [epoch, leader, renewals, ttl, address, released, successor] =
        add_leadership(statement, row);
    format!(
        "epoch = ${epoch} AND fleet.leader = ${leader} AND renewals = ${renewals} \
         AND leader_ttl_ms = ${ttl} AND address = ${address} AND released = ${released} \
         AND successor IS NOT DISTINCT FROM ${successor}"
    )
}

fn set_leadership(statement: &mut Statement, row: &LeadershipRow) -> String {
    let [epoch, leader, renewals, ttl, address, released, successor] =
        add_leadership(statement, row);
    format!(
        "epoch = ${epoch}, leader = ${leader}, renewals = ${renewals}, leader_ttl_ms = ${ttl}, \
         address = ${address}, released = ${released}, successor = ${successor}"
    )
}

fn add_leadership(statement: &mut Statement, row: &LeadershipRow) -> [usize; 7] {
    let LeadershipRow { epoch, leader, renewals, leader_ttl, address, released, successor } = row;
    let milliseconds = u64::try_from(leader_ttl.as_millis()).unwrap_or(u64::MAX);
    [
        statement.add(signed(*epoch), Type::INT8),
        statement.add(leader.to_string(), Type::TEXT),
        statement.add(signed(*renewals), Type::INT8),
        statement.add(signed(milliseconds), Type::INT8),
        statement.add(String::from(&**address), Type::TEXT),
        statement.add(*released, Type::BOOL),
        statement.add(successor.map(|id| id.to_string()), Type::TEXT),
    ]
}

#[cfg(test)]
pub(crate) mod tests;
