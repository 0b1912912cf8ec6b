//! What the database says about the transactions of the leader.

use anyhow::Context as _;
use tokio::runtime::Handle;
use tokio_postgres::{Client, NoTls};

/// Counts the transactions that have locked the journal row, and those of them that wait for their server.
const LOCKED: &str = "SELECT count(*), count(*) FILTER (WHERE state = 'idle in transaction') \
    FROM pg_stat_activity a WHERE EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted \
    AND l.mode = 'RowExclusiveLock' AND l.relation = 'tgm_session.journal'::regclass)";

/// Transactions that have locked the journal row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locked {
    pub(crate) all: i64,
    /// Those that the database can end only once their server says more.
    pub(crate) waiting: i64,
}

/// A connection to the database.
pub(crate) struct Transactions {
    client: Client,
    runtime: Handle,
}

impl Transactions {
    /// Connects to the database at `port`.
    ///
    /// # Errors
    ///
    /// There is no connection.
    pub(crate) fn connect(port: u16, runtime: &Handle) -> anyhow::Result<Self> {
        let url = format!("postgres://tgm@127.0.0.1:{port}/postgres");
        let connected = runtime.block_on(tokio_postgres::connect(&url, NoTls));
        let (client, connection) = connected.context("the database does not answer")?;
        runtime.spawn(connection);
        Ok(Self { client, runtime: runtime.clone() })
    }

    /// Looks for transactions that have locked the journal row.
    ///
    /// # Errors
    ///
    /// The database does not answer.
    pub(crate) fn locked(&self) -> anyhow::Result<Locked> {
        let row = self.runtime.block_on(self.client.query_one(LOCKED, &[]))?;
        Ok(Locked { all: row.try_get(0)?, waiting: row.try_get(1)? })
    }
}
