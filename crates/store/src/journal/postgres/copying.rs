//! The tables of a fleet that are read or written as a whole, while no server uses them.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::connection::Connection;
use super::failure::{Failure, is_lock_timeout};
use super::load::{self, ROWS, rows};
use super::settings::Settings;
use super::{commit, members, schema};
use crate::contents::{Inspected, RecordCounts};
use crate::error::Error;
use crate::fleet::{FleetSecret, JournalRow, Rows as FleetRows};
use crate::journal::rows::Rows;
use crate::journal::watching::{in_use, watch_leadership};
use crate::journal::{Restored, Stamp};

/// How long one step may take. The tables of a large fleet are read in one step.
const STEP_WITHIN: Duration = Duration::from_secs(60 * 60);

/// The transaction that reads or writes everything. Nothing of it is cut off, and no server gets a lock
/// meanwhile.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL lock_timeout = 2000; \
                     SET LOCAL statement_timeout = 0; \
                     SET LOCAL idle_in_transaction_session_timeout = 0; \
                     SELECT set_config('synchronous_commit', 'on', true) \
                     WHERE current_setting('synchronous_commit') IN ('off', 'local')";

/// The tables of a fleet in one transaction, which no server can use before it ends.
#[derive(Debug)]
pub(crate) struct Exclusive {
    connection: Connection,
    /// The last batch; `None` while there are no tables.
    last: Option<JournalRow>,
}

impl Exclusive {
    /// Begins the transaction. If a server may lead the fleet, its row is watched first; `watch` is told
    /// for how long.
    ///
    /// # Errors
    ///
    /// A server leads, or the tables have an unknown version.
    pub(crate) fn open(settings: Settings, watch: &mut dyn FnMut(Duration)) -> Result<Self, Error> {
        let mut exclusive = Self { connection: Connection::new(settings)?, last: None };
        let url = exclusive.connection.shown().to_owned();
        let mut look = || exclusive.step(look);
        let seen = watch_leadership(&url, &mut look, watch)?;
        exclusive.step(async |client, _| Ok(client.batch_execute(BEGIN).await?))?;
        let Some(seen) = seen else { return Ok(exclusive) };
        let locked = exclusive.step(async |client, schema| {
            let query =
                format!("SELECT {ROWS} FROM {schema}.fleet f, {schema}.journal j FOR UPDATE");
            match client.query_typed_one(&query, &[]).await {
                Ok(row) => Ok(Some(read_rows(&row)?)),
                Err(error) if is_lock_timeout(&error) || is_changed(&error) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        if locked.as_ref() != Some(&seen) {
            return Err(in_use(&url));
        }
        exclusive.last = Some(seen.journal);
        Ok(exclusive)
    }

    /// Restores all rows, and returns the stamp of the last batch.
    pub(crate) fn read(&mut self, restored: &mut Restored) -> Result<Stamp, Error> {
        if self.last.is_none() {
            return Err(self.error("it has no tables of a fleet"));
        }
        self.step(async |client, schema| {
            load::load_all(client, schema, restored).await.map_err(|error| match error {
                load::LoadError::Database(error) => Failure::Database(error),
                other => Failure::Other(other.to_string()),
            })
        })
    }

    /// Creates the tables if there are none, and refuses those that have rows.
    pub(crate) fn prepare_empty(
        &mut self,
        secret: [u8; 32],
        leader_ttl: Duration,
    ) -> Result<(), Error> {
        if self.last.is_some() {
            let records = self.step(async |client, schema| count_records(client, schema).await)?;
            return match records.total() {
                0 => Ok(()),
                rows => {
                    let url = self.connection.shown();
                    let problem = format!("the tables of {url} have {rows} rows already");
                    Err(Error::NotCopied { problem })
                }
            };
        }
        let created = self.step(async |client, schema| {
            let create = schema::creation(schema, leader_ttl, FleetSecret(secret));
            client.batch_execute(&create).await?;
            read_fleet(client, schema).await
        })?;
        self.last = Some(created.journal);
        Ok(())
    }

    /// Writes one part.
    pub(crate) fn write(&mut self, part: &Rows, stamp: Stamp) -> Result<(), Error> {
        let seen = self.last.ok_or_else(|| self.error("it has no tables of a fleet"))?;
        let new = JournalRow { sequence: seen.sequence + 1, ..seen };
        let statement = commit::statement(self.connection.schema(), part, stamp, seen, new);
        let changed: i64 = self.step(async |client, _| {
            Ok(client.query_typed_one(&statement.sql, &statement.parameters()).await?.try_get(0)?)
        })?;
        if changed != 1 {
            return Err(in_use(self.connection.shown()));
        }
        self.last = Some(new);
        Ok(())
    }

    /// Ends the transaction, which has changed nothing. It fails if a server has ended it before.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        self.commit()
    }

    /// Makes what was written durable.
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        self.step(async |client, _| Ok(client.batch_execute("COMMIT").await?))
    }

    /// Runs one step. When it fails, the connection and with it the transaction ends.
    fn step<R>(
        &mut self,
        work: impl AsyncFnOnce(&Client, &str) -> Result<R, Failure>,
    ) -> Result<R, Error> {
        let done = self.connection.run(STEP_WITHIN, work);
        done.map_err(|error| self.error(error.to_string()))
    }

    fn error(&self, problem: impl Into<String>) -> Error {
        Error::Database { url: self.connection.shown().to_owned(), problem: problem.into() }
    }
}

/// Counts what the tables hold, and reads who leads. They may be in use.
pub(crate) fn inspect(settings: Settings) -> Result<Inspected, Error> {
    let mut connection = Connection::new(settings)?;
    let inspected = connection.run(STEP_WITHIN, async |client, schema| {
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let Some(fleet) = look(client, schema).await? else {
            return Err(Failure::Other("it has no tables of a fleet".to_owned()));
        };
        let members = members::read(client, schema).await?;
        let records = count_records(client, schema).await?;
        let query = format!("SELECT next_serial FROM {schema}.journal");
        let next_serial: i64 = client.query_typed_one(&query, &[]).await?.try_get(0)?;
        client.batch_execute("COMMIT").await?;
        Ok(Inspected {
            version: schema::VERSION.unsigned_abs().into(),
            records,
            sequence: fleet.journal.sequence,
            next_serial: next_serial.cast_unsigned(),
            fleet: Some(fleet),
            members,
        })
    });
    inspected.map_err(|error| Error::Database {
        url: connection.shown().to_owned(),
        problem: error.to_string(),
    })
}

/// Whether there are tables, whose version has to be known.
async fn has_tables(client: &Client, schema: &str) -> Result<bool, Failure> {
    let name = format!("{schema}.version");
    let name = [(&name as &(dyn ToSql + Sync), Type::TEXT)];
    let found = client.query_typed_one("SELECT to_regclass($1) IS NOT NULL", &name).await?;
    if !found.try_get(0)? {
        return Ok(false);
    }
    let query = format!("SELECT version FROM {schema}.version");
    let version = client.query_typed_opt(&query, &[]).await?;
    let version = version.map(|row| row.try_get(0)).transpose()?;
    schema::check_version(version).map(|()| true)
}

/// The rows that say who leads; `None` if there are no tables.
async fn look(client: &Client, schema: &str) -> Result<Option<FleetRows>, Failure> {
    if !has_tables(client, schema).await? {
        return Ok(None);
    }
    read_fleet(client, schema).await.map(Some)
}

async fn read_fleet(client: &Client, schema: &str) -> Result<FleetRows, Failure> {
    let query = format!("SELECT {ROWS} FROM {schema}.fleet f, {schema}.journal j");
    read_rows(&client.query_typed_one(&query, &[]).await?)
}

fn read_rows(row: &tokio_postgres::Row) -> Result<FleetRows, Failure> {
    rows(row).map_err(|error| Failure::Other(error.to_string()))
}

async fn count_records(client: &Client, schema: &str) -> Result<RecordCounts, Failure> {
    let query = format!(
        "SELECT (SELECT count(*) FROM {schema}.leases), \
         (SELECT count(lingers_until) FROM {schema}.leases), \
         (SELECT count(*) FROM {schema}.remembered), (SELECT count(*) FROM {schema}.usage), \
         (SELECT count(*) FROM {schema}.overrides), (SELECT count(*) FROM {schema}.audit)"
    );
    let row = client.query_typed_one(&query, &[]).await?;
    let count = |at| row.try_get::<_, i64>(at).map(i64::cast_unsigned);
    Ok(RecordCounts {
        leases: count(0)?,
        lingering: count(1)?,
        remembered: count(2)?,
        usage: count(3)?,
        overrides: count(4)?,
        audit: count(5)?,
    })
}

/// Whether a row that was to be locked had been changed meanwhile.
fn is_changed(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::T_R_SERIALIZATION_FAILURE)
}
