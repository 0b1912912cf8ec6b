//! The databases of fleets, started for one measurement.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use store::testing::cluster::Cluster;
use store::testing::etcd::Etcd;
use tokio_postgres::NoTls;

use crate::process::{children_cpu_of, cpu_of};

/// A database of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// One PostgreSQL with `synchronous_commit = on`.
    Postgres,
    /// One member of etcd.
    Etcd,
}

/// Every engine: its name, and the goal of durable borrows per second with 256 callers.
pub const ENGINES: [(Engine, &str, f64); 2] =
    [(Engine::Postgres, "postgres:", 40_000.0), (Engine::Etcd, "etcd:", 20_000.0)];

/// A running database. It ends with this value.
#[derive(Debug)]
pub enum Database {
    /// See [`Engine::Postgres`].
    Postgres(Cluster),
    /// See [`Engine::Etcd`].
    Etcd(Etcd),
}

impl Engine {
    /// Starts a database with its data below `folder`.
    ///
    /// # Errors
    ///
    /// Its programs are not installed.
    pub fn start(self, folder: &Path) -> anyhow::Result<Database> {
        match self {
            Self::Postgres => {
                let cluster = Cluster::start_in(folder).context("PostgreSQL is not installed")?;
                Ok(Database::Postgres(cluster))
            }
            Self::Etcd => {
                let etcd = Etcd::start_in(folder, 1, &[]).context("etcd is not installed")?;
                Ok(Database::Etcd(etcd))
            }
        }
    }
}

impl Database {
    /// The URL of a store in it.
    pub fn url(&self) -> String {
        match self {
            Self::Postgres(cluster) => cluster.url(),
            Self::Etcd(etcd) => etcd.url("bench"),
        }
    }

    /// CPU time that its processes have used so far, user and system.
    ///
    /// # Errors
    ///
    /// A process ended meanwhile.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let processes = match self {
            Self::Postgres(cluster) => cluster.processes(),
            Self::Etcd(etcd) => etcd.processes(),
        };
        // A process of a connection that was closed has ended.
        let used = |process| Ok(cpu_of(process)? + children_cpu_of(process)?);
        processes.into_iter().map(used).sum()
    }

    /// The bytes of its tables and indexes, or of its file.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        match self {
            Self::Postgres(cluster) => runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&cluster.url(), NoTls).await?;
                tokio::spawn(connection);
                let query = "SELECT pg_database_size(current_database())";
                let bytes: i64 = client.query_one(query, &[]).await?.get(0);
                Ok(u64::try_from(bytes)?)
            }),
            Self::Etcd(etcd) => {
                let status = etcd.ctl(&["endpoint", "status", "--write-out=json"]);
                let status: serde_json::Value = serde_json::from_str(&status)?;
                let bytes = status[0]["Status"]["dbSize"].as_u64();
                bytes.context("etcd does not tell its size")
            }
        }
    }
}
