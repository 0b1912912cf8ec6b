//! The rows of the servers of a fleet.

use std::time::Duration;

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::commit::signed;
use super::load::{LoadError, id_of};
use super::{Failure, PostgresElections, schema};
use crate::fleet::{FORGOTTEN_AFTER, LeaderId, Member, MemberId, MemberRole};
use crate::journal::encoding::BadRow;
use crate::journal::engine::{Facts, Meeting};

impl PostgresElections {
    /// Writes the row of this server, removes those that were not seen for a minute, and reads all.
    pub(crate) fn meet(&mut self, facts: &Facts<'_>, within: Duration) -> Result<Meeting, Failure> {
        let (id, led) = (facts.id.to_string(), facts.led.map(signed));
        let role = facts.role.as_str();
        self.connection.run(within, async |client, schema| {
            let forgotten_after = FORGOTTEN_AFTER.as_secs();
            let write = format!(
                "WITH gone AS (DELETE FROM {schema}.members \
                 WHERE seen < now() - interval '{forgotten_after} seconds' AND id <> $1) \
                 INSERT INTO {schema}.members VALUES ($1, $2, $3, $4, $5, $6, now(), $7, now()) \
                 ON CONFLICT (id) DO UPDATE SET policy = excluded.policy, role = excluded.role, \
                 role_since = CASE WHEN members.role = excluded.role THEN members.role_since \
                 ELSE now() END, led = excluded.led, seen = now()"
            );
            let parameters: [(&(dyn ToSql + Sync), Type); 7] = [
                (&id, Type::TEXT),
                (&facts.address, Type::TEXT),
                (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                (&schema::VERSION, Type::INT4),
                (&facts.policy_hash, Type::TEXT),
                (&role, Type::TEXT),
                (&led, Type::INT8),
            ];
            let read = reading(schema);
            let tables = format!("SELECT version FROM {schema}.version");
            let (written, rows, tables) = tokio::join!(
                client.query_typed(&write, &parameters),
                client.query_typed(&read, &[]),
                client.query_typed_one(&tables, &[]),
            );
            written?;
            Ok(Meeting { members: members(&rows?)?, tables: tables?.try_get(0)? })
        })
    }

    /// Removes the row of this server.
    pub(crate) fn leave(&mut self, id: MemberId, within: Duration) -> Result<(), Failure> {
        let id = id.to_string();
        self.connection.run(within, async |client, schema| {
            let delete = format!("DELETE FROM {schema}.members WHERE id = $1");
            client.query_typed(&delete, &[(&id, Type::TEXT)]).await?;
            Ok(())
        })
    }

    /// Brings the tables to the version of this program, if `leader` leads and every live member knows
    /// that version. Returns whether it did.
    pub(crate) fn migrate(&mut self, leader: LeaderId, within: Duration) -> Result<bool, Failure> {
        self.connection.run(within, async |client, schema| {
            schema::migrate(client, schema, leader, &schema::MIGRATIONS).await
        })
    }
}

/// The statement that reads all servers.
fn reading(schema: &str) -> String {
    format!(
        "SELECT id, address, version, tables, policy, role, \
         extract(epoch FROM role_since)::int8, led, \
         greatest(0, extract(epoch FROM now() - seen) * 1000)::int8 \
         FROM {schema}.members ORDER BY address, id"
    )
}

/// Reads the servers of a fleet, without being one of them.
pub(crate) async fn read(client: &Client, schema: &str) -> Result<Vec<Member>, Failure> {
    members(&client.query_typed(&reading(schema), &[]).await?)
}

fn members(rows: &[Row]) -> Result<Vec<Member>, Failure> {
    let members = rows.iter().map(member).collect::<Result<_, _>>();
    members.map_err(|error: LoadError| Failure::Other(error.to_string()))
}

fn member(row: &Row) -> Result<Member, LoadError> {
    let bad = BadRow { table: "members" };
    let text = |at| row.try_get::<_, String>(at).map(String::into_boxed_str);
    Ok(Member {
        id: MemberId(id_of(&text(0)?)?),
        address: text(1)?,
        version: text(2)?,
        tables: u32::try_from(row.try_get::<_, i32>(3)?).map_err(|_| bad)?,
        policy_hash: text(4)?,
        role: MemberRole::from_text(&text(5)?),
        role_since: row.try_get(6)?,
        led: row.try_get::<_, Option<i64>>(7)?.map(i64::cast_unsigned),
        seen_ago: Duration::from_millis(row.try_get::<_, i64>(8)?.cast_unsigned()),
    })
}
