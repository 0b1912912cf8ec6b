//! A connection to the database that is made again when it breaks.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_postgres::Client;

use super::failure::{Failure, explain};
use super::settings::Settings;
use crate::error::Error;

/// What is wrong with a database that cannot be written to.
const READ_ONLY: &str = "it cannot be written to, as a replica: only the primary can be a store";

/// One connection, with the runtime on which it lives. Calls block.
pub(crate) struct Connection {
    settings: Settings,
    runtime: Runtime,
    client: Option<Client>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Connection {
    pub(crate) fn new(settings: Settings) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|source| Error::System { action: "start a runtime", source })?;
        Ok(Self { settings, runtime, client: None })
    }

    pub(crate) fn schema(&self) -> &str {
        &self.settings.schema
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn shown(&self) -> &str {
        &self.settings.shown
    }

    /// Runs `work` on the connection, which is made first if there is none. After a failure the
    /// connection is dropped: what it was doing cannot be told from what comes next.
    pub(crate) fn run<R>(
        &mut self,
        within: Duration,
        work: impl AsyncFnOnce(&Client, &str) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let Self { settings, runtime, client } = self;
        let outcome = runtime.block_on(async {
            let work = async {
                let connected = match client {
                    Some(client) if !client.is_closed() => client,
                    _ => client.insert(connect(settings).await?),
                };
                work(connected, &settings.schema).await
            };
            tokio::time::timeout(within, work).await.unwrap_or(Err(Failure::Late(within)))
        });
        if outcome.is_err() {
            *client = None;
        }
        outcome
    }
}

async fn connect(settings: &Settings) -> Result<Client, Failure> {
    let connected = settings.config.connect(settings.tls.connector()).await;
    let (client, connection) = connected.map_err(|error| {
        // Every host of the URL was asked whether it can be written to.
        let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
        if io.is_some_and(|io| io.to_string().contains("does not allow writes")) {
            Failure::Other(READ_ONLY.to_owned())
        } else {
            Failure::Database(error)
        }
    })?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(error = explain(&error), "a connection to the database ended");
        }
    });
    // A replica cannot be written to.
    let row = client
        .query_typed_one("SELECT pg_is_in_recovery(), current_setting('server_encoding')", &[])
        .await?;
    if row.try_get(0)? {
        return Err(Failure::Other(READ_ONLY.to_owned()));
    }
    let encoding: String = row.try_get(1)?;
    if encoding != "UTF8" {
        return Err(Failure::Other(format!("its encoding is {encoding}, and a store needs UTF8")));
    }
    Ok(client)
}
