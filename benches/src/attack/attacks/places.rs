//! Attacks that take the places for connections.

use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;
use wire::framing::frame as message;

use super::before_key::with_key;
use crate::connection::{Connection, Reads, connect};
use crate::frames::{Block, PREFACE};
use crate::load::{STATE, run};
use crate::stage::Stage;

/// Connections, more than the server has places for.
const CONNECTIONS: usize = 600;

/// These attacks run longer than others by this factor, so that a client's wait for a place is
/// measured.
const LONGER: u32 = 2;

/// The pause between two headers of a slow request.
const SLOWLY: Duration = Duration::from_millis(100);

/// Connections that send no request.
pub(super) async fn silent(stage: &mut Stage) -> anyhow::Result<()> {
    stage.span *= LONGER;
    stage
        .crowd(CONNECTIONS, |link, number| async move {
            let mut stream = connect(link.address).await?;
            // Every second connection sends the first bytes of the preface.
            stream.write_all(&PREFACE[..number % 2 * 10]).await?;
            // Wait until the server closes the connection.
            stream.read_u8().await.context("the server closed it")?;
            Ok(())
        })
        .await
}

/// Connections that make one call and then stay idle.
pub(super) async fn idle(stage: &mut Stage, key: Option<&'static str>) -> anyhow::Result<()> {
    stage.span *= LONGER;
    stage
        .crowd(CONNECTIONS, move |link, _| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let block = with_key(Block::call(STATE), key);
            let question = wire::worker::WorkersStateRequest {
                service: crate::calls::LASTING.into(),
                organization_id: "squatter".into(),
                api_key_id: String::new(),
            };
            let call = |_| (block.clone(), message(&question));
            run(&mut connection, 0..1, 1, call).await?;
            connection.closed().await;
            Ok(())
        })
        .await
}

/// Requests of HTTP/1.1 whose headers come slowly and never end.
pub(super) async fn slow_headers(stage: &mut Stage) -> anyhow::Result<()> {
    stage.span *= LONGER;
    stage
        .crowd(CONNECTIONS, |link, _| async move {
            let mut stream = connect(link.address).await?;
            let begin =
                "POST /sf.worker.v1.WorkerPool/BorrowWorker HTTP/1.1\r\nhost: localhost\r\n";
            stream.write_all(begin.as_bytes()).await?;
            let long = format!("a: {}\r\n", "b".repeat(1_000));
            loop {
                stream.write_all(long.as_bytes()).await?;
                sleep(SLOWLY).await;
            }
        })
        .await
}
