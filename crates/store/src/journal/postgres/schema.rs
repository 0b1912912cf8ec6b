//! The tables of a fleet, which a person can read with SQL.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::failure::Failure;
use crate::fleet::{FleetSecret, LeaderId};

/// The version of the tables that this program writes.
pub(crate) const VERSION: i32 = 1;

/// Creates the tables. `{schema}` stands for the quoted name of the schema.
///
/// Times are nanoseconds of store time, which only the fleet knows; `at` and `set_at` are times of the
/// wall clock. Text is as callers sent it, but for NUL and `\`, which stand as `\0` and `\\`.
const CREATE: &str = r"
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE {schema}.version (version int4 NOT NULL);
CREATE TABLE {schema}.secret (secret text NOT NULL);
CREATE TABLE {schema}.fleet (
    epoch int8 NOT NULL,
    leader text NOT NULL,
    renewals int8 NOT NULL,
    leader_ttl_ms int8 NOT NULL,
    address text NOT NULL,
    released bool NOT NULL,
    successor text
);
CREATE TABLE {schema}.journal (
    leader text NOT NULL,
    sequence int8 NOT NULL,
    attempt int8 NOT NULL,
    store_time int8 NOT NULL,
    next_serial int8 NOT NULL
);
CREATE TABLE {schema}.leases (
    serial int8 PRIMARY KEY,
    slot int8 NOT NULL,
    secret bytea NOT NULL,
    worker bool NOT NULL,
    indexer text,
    service text NOT NULL,
    organization text NOT NULL,
    api_key text NOT NULL,
    trace text NOT NULL,
    granted_at int8 NOT NULL,
    ttl int8 NOT NULL,
    lingers_until int8,
    borrow_id bytea,
    fingerprint int8
);
CREATE TABLE {schema}.remembered (
    key bytea PRIMARY KEY,
    fact text NOT NULL,
    indexer text,
    subject text NOT NULL,
    row bytea NOT NULL
);
CREATE TABLE {schema}.usage (
    organization text NOT NULL,
    metric text NOT NULL,
    day int8 NOT NULL,
    in_day float8 NOT NULL,
    month int8 NOT NULL,
    in_month float8 NOT NULL,
    PRIMARY KEY (organization, metric)
);
CREATE TABLE {schema}.overrides (
    subject int4 NOT NULL,
    id text NOT NULL,
    service text NOT NULL,
    value int8 NOT NULL,
    set_at timestamptz NOT NULL,
    note text NOT NULL,
    PRIMARY KEY (subject, id, service)
);
CREATE TABLE {schema}.audit (
    number int8 PRIMARY KEY,
    at timestamptz NOT NULL,
    sender text NOT NULL,
    action text NOT NULL,
    note text NOT NULL,
    ended int8 NOT NULL
);
INSERT INTO {schema}.version VALUES (1);
INSERT INTO {schema}.secret VALUES ('{secret}');
INSERT INTO {schema}.fleet VALUES (0, '{leader}', 0, {ttl}, '', true, NULL);
INSERT INTO {schema}.journal VALUES ('{leader}', 0, 0, 0, 0);
";

/// Creates the tables if there are none, checks their version, and returns the secret of the fleet.
/// `secret` is that of a new fleet.
///
/// Two servers may start at once: the one that comes second finds the tables of the first.
pub(crate) async fn prepare(
    client: &Client,
    schema: &str,
    leader_ttl: Duration,
    secret: FleetSecret,
) -> Result<FleetSecret, Failure> {
    for _ in 0..3 {
        match client.query_typed(&format!("SELECT version FROM {schema}.version"), &[]).await {
            Ok(rows) => {
                check_version(rows.first().map(|row| row.get(0)))?;
                return read_secret(client, schema).await;
            }
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error.into()),
        }
        let create = creation(schema, leader_ttl, secret);
        match client.batch_execute(&format!("BEGIN; {create} COMMIT")).await {
            Ok(()) => tracing::info!(schema, "created the tables of the store"),
            Err(error) if is_duplicate(&error) => client.batch_execute("ROLLBACK").await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::Other("its tables cannot be created".to_owned()))
}

/// The statements that create the tables of a new fleet.
pub(super) fn creation(schema: &str, leader_ttl: Duration, secret: FleetSecret) -> String {
    CREATE
        .replace("{schema}", schema)
        .replace("{ttl}", &leader_ttl.as_millis().to_string())
        .replace("{leader}", &LeaderId::default().to_string())
        .replace("{secret}", &secret.to_text())
}

/// Refuses tables of a version that this program does not know.
pub(super) fn check_version(found: Option<i32>) -> Result<(), Failure> {
    if found == Some(VERSION) {
        return Ok(());
    }
    let found = found.map_or_else(|| "?".to_owned(), |found| found.to_string());
    Err(Failure::Other(format!(
        "its tables have version {found}, and this program knows version {VERSION}"
    )))
}

async fn read_secret(client: &Client, schema: &str) -> Result<FleetSecret, Failure> {
    let query = format!("SELECT secret FROM {schema}.secret");
    let row = client.query_typed_one(&query, &[]).await?;
    let secret = FleetSecret::from_text(row.try_get(0)?);
    secret.ok_or_else(|| Failure::Other("its secret cannot be read".to_owned()))
}

fn is_missing(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::UNDEFINED_TABLE || *code == SqlState::INVALID_SCHEMA_NAME
    })
}

fn is_duplicate(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::UNIQUE_VIOLATION
            || *code == SqlState::DUPLICATE_TABLE
            || *code == SqlState::DUPLICATE_SCHEMA
    })
}
