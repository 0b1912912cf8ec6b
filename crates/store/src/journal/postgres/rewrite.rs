//! Writing the whole journal again, after the database has lost changes that were acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;
use tokio_postgres::Client;

use super::elections::take_over;
use super::load::{LoadError, each, rows, unsigned};
use super::{Failure, PostgresElections, begin, commit};
use crate::fleet::{Answer, Rows as FleetRows};
use crate::journal::Snapshot;
use crate::journal::rows::Rows;

/// The most rows of one table in one statement.
const ROWS_AT_ONCE: usize = 10_000;

impl PostgresElections {
    /// Replaces both rows and all content of the journal, in one transaction, if both rows equal `seen`.
    ///
    /// The rows are locked and compared first, so that nobody takes over in the meantime. Another server
    /// ends this transaction when it has waited for the lock for a leader-ttl. So only what differs is
    /// written: a replica usually lacks no more than the last changes.
    ///
    /// # Errors
    ///
    /// Whether anything was replaced is unknown.
    pub(crate) fn rewrite(
        &mut self,
        seen: &FleetRows,
        new: &FleetRows,
        snapshot: Snapshot,
        within: Duration,
    ) -> Result<Answer, Failure> {
        let Snapshot { rows: mut content, stamp } = snapshot;
        let schema = self.connection.schema().to_owned();
        let claim = take_over(&schema, seen, new);
        let replaced = self.connection.run(within, async |client, _| {
            client.batch_execute(&begin(within)).await?;
            let claimed = client.query_typed_opt(&claim.sql, &claim.parameters()).await?;
            let Some(claimed) = claimed else {
                client.batch_execute("ROLLBACK").await?;
                return Ok(None);
            };
            let claimed = rows(&claimed).map_err(|error| Failure::Other(error.to_string()))?;
            for table in ["usage", "overrides", "audit"] {
                client.batch_execute(&format!("DELETE FROM {schema}.{table}")).await?;
            }
            keep_differences(client, &schema, &mut content).await.map_err(|error| match error {
                LoadError::Database(error) => Failure::Database(error),
                other => Failure::Other(other.to_string()),
            })?;
            for part in parts(content) {
                // Each part goes in beside the same row, which this transaction has locked.
                let row = claimed.journal;
                let statement = commit::statement(&schema, &part, stamp, row, row);
                let written =
                    client.query_typed_one(&statement.sql, &statement.parameters()).await?;
                if written.try_get::<_, i64>(0)? != 1 {
                    return Err(Failure::Other("its journal row cannot be changed".to_owned()));
                }
            }
            client.batch_execute("COMMIT").await?;
            Ok(Some(claimed))
        })?;
        match replaced {
            Some(rows) => Ok(Answer::Replaced(rows)),
            None => Ok(Answer::Differ(self.read(within)?)),
        }
    }
}

/// Removes from `content` the leases and the remembered facts that the database has, and adds the ends of
/// those that it should not have.
async fn keep_differences(
    client: &Client,
    schema: &str,
    content: &mut Rows,
) -> Result<(), LoadError> {
    // A serial number and a secret name one grant. Of its row only the end of its lingering changes.
    let leases = format!("SELECT serial, secret, lingers_until FROM {schema}.leases");
    each(client, &leases, |row| {
        let serial = unsigned(row, 0)?;
        let lingers_until = row.try_get::<_, Option<i64>>(2)?.map(i64::cast_unsigned);
        let secret: &[u8] = row.try_get(1)?;
        let is_same = content.granted.get(&serial).is_some_and(|lease| lease.secret == secret)
            && content.lingering.get(&serial).copied() == lingers_until;
        if is_same {
            content.granted.remove(&serial);
        } else {
            content.ended.push(serial);
        }
        Ok(())
    })
    .await?;
    let remembered = format!("SELECT key, row FROM {schema}.remembered");
    each(client, &remembered, |row| {
        let (key, row): (Vec<u8>, &[u8]) = (row.try_get(0)?, row.try_get(1)?);
        match content.remembered.get(&key) {
            Some(Some(known)) if known.encode_to_vec() == row => {
                content.remembered.remove(&key);
            }
            Some(_) => {}
            None => {
                content.remembered.insert(key, None);
            }
        }
        Ok(())
    })
    .await
}

/// Parts of bounded size; at least one, which carries the counters. What has ended comes first: a lease of
/// the same number may be granted.
fn parts(mut content: Rows) -> Vec<Rows> {
    let operator_records = std::mem::take(&mut content.operator_records);
    let mut parts = vec![Rows { operator_records, ..Rows::default() }];
    let ended = content.ended.chunks(ROWS_AT_ONCE);
    parts.extend(ended.map(|ended| Rows { ended: ended.to_vec(), ..Rows::default() }));
    loop {
        let granted = take(&mut content.granted);
        let lingering = granted
            .keys()
            .filter_map(|serial| Some((*serial, *content.lingering.get(serial)?)))
            .collect();
        let (remembered, used) = (take(&mut content.remembered), take(&mut content.used));
        if granted.is_empty() && remembered.is_empty() && used.is_empty() {
            return parts;
        }
        parts.push(Rows { granted, lingering, remembered, used, ..Rows::default() });
    }
}

/// Takes the first rows of a table.
fn take<K: Clone + Ord, V>(table: &mut BTreeMap<K, V>) -> BTreeMap<K, V> {
    let end = table.keys().nth(ROWS_AT_ONCE).cloned();
    let rest = end.map(|end| table.split_off(&end)).unwrap_or_default();
    std::mem::replace(table, rest)
}
