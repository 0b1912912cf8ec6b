//! The two rows that say who leads.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::commit::{Statement, signed};
use super::connection::Connection;
use super::failure::is_lock_timeout;
use super::load::{ROWS, rows};
use super::settings::Settings;
use super::{Failure, begin, schema};
use crate::error::Error;
use crate::fleet::{Answer, FleetSecret, LeadershipRow, Request, Rows};

/// The connection of a server for the two rows that say who leads.
#[derive(Debug)]
pub(crate) struct PostgresElections {
    pub(super) connection: Connection,
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

    pub(super) fn read(&mut self, within: Duration) -> Result<Rows, Failure> {
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
pub(super) fn take_over(schema: &str, seen: &Rows, new: &Rows) -> Statement {
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
