//! The tables of a fleet, which a person can read with SQL.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::failure::Failure;
use crate::fleet::{FORGOTTEN_AFTER, FleetSecret, LeaderId};

/// The oldest version of the tables that this program can use.
const OLDEST: i32 = 1;

/// The version to which this program brings the tables.
///
/// A program that knows a new version still uses the one before: servers of both programs stand beside
/// each other during an upgrade, and each of them may lead. Only a leader migrates, once every live member
/// knows the new version; the program before it is refused from then on.
pub(crate) const VERSION: i32 = OLDEST + MIGRATIONS.len() as i32;

/// The statements that make each version from the one before it.
pub(crate) const MIGRATIONS: [&str; 0] = [];

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
CREATE TABLE {schema}.members (
    id text PRIMARY KEY,
    address text NOT NULL,
    version text NOT NULL,
    tables int4 NOT NULL,
    policy text NOT NULL,
    role text NOT NULL,
    role_since timestamptz NOT NULL,
    led int8,
    seen timestamptz NOT NULL
);
INSERT INTO {schema}.version VALUES ({version});
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
        .replace("{version}", &VERSION.to_string())
        .replace("{leader}", &LeaderId::default().to_string())
        .replace("{secret}", &secret.to_text())
}

/// Refuses tables of a version that this program does not know.
pub(super) fn check_version(found: Option<i32>) -> Result<(), Failure> {
    if found.is_some_and(|found| (OLDEST..=VERSION).contains(&found)) {
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

/// Brings the tables to the version after the last of `steps`, in one transaction. Does nothing unless
/// `leader` leads, and every live member knows that version. Returns whether the tables were changed.
pub(crate) async fn migrate(
    client: &Client,
    schema: &str,
    leader: LeaderId,
    steps: &[&str],
) -> Result<bool, Failure> {
    let target = OLDEST + i32::try_from(steps.len()).unwrap_or(i32::MAX);
    client.batch_execute("BEGIN").await?;
    // The lock of the row keeps out another leader, and another migration.
    let forgotten_after = FORGOTTEN_AFTER.as_secs();
    let query = format!(
        "SELECT v.version, (SELECT min(tables) FROM {schema}.members \
         WHERE seen > now() - interval '{forgotten_after} seconds') \
         FROM {schema}.version v, {schema}.fleet f WHERE f.leader = $1 AND NOT f.released \
         FOR UPDATE OF v, f"
    );
    let row = client.query_typed_opt(&query, &[(&leader.to_string(), Type::TEXT)]).await?;
    let versions = row.map(|row| (row.get::<_, i32>(0), row.get::<_, Option<i32>>(1)));
    let Some((found, Some(known))) = versions.filter(|(found, _)| *found < target) else {
        client.batch_execute("ROLLBACK").await?;
        return Ok(false);
    };
    if known < target {
        client.batch_execute("ROLLBACK").await?;
        tracing::info!(
            known,
            target,
            "the tables are migrated once every server knows the version"
        );
        return Ok(false);
    }
    let first = usize::try_from(found - OLDEST).unwrap_or_default();
    for step in &steps[first..] {
        client.batch_execute(&step.replace("{schema}", schema)).await?;
    }
    client
        .batch_execute(&format!("UPDATE {schema}.version SET version = {target}; COMMIT"))
        .await?;
    tracing::info!(from = found, to = target, "migrated the tables of the store");
    Ok(true)
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
