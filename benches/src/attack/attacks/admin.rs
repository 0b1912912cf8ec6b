//! Attacks that take the places for connections of the admin port.

use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::connection::connect;
use crate::stage::Stage;

/// Connections, more than the port has places for.
const CONNECTIONS: usize = 300;

/// The receive buffer of a connection that reads nothing.
const NARROW_BUFFER: u32 = 4 * 1024;

/// These attacks run longer than others by this factor, so that a client's wait for a place is
/// measured.
const LONGER: u32 = 3;

/// How long an attacker waits for its connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Connections that send no request.
pub(super) async fn silent(stage: &mut Stage) -> anyhow::Result<()> {
    hold(stage, |_| "").await
}

/// Connections that stay idle after one answered request.
pub(super) async fn idle(stage: &mut Stage) -> anyhow::Result<()> {
    hold(stage, |_| "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await
}

/// Holds connections open. Each sends `asks` of its number and reads the answers.
async fn hold(stage: &mut Stage, asks: fn(usize) -> &'static str) -> anyhow::Result<()> {
    stage.span *= LONGER;
    let admin = stage.admin();
    stage
        .crowd(CONNECTIONS, move |_, number| async move {
            let mut stream = connect(admin).await?;
            stream.write_all(asks(number).as_bytes()).await?;
            let mut answer = [0; 1_024];
            while stream.read(&mut answer).await? > 0 {}
            Ok(())
        })
        .await
}

/// Connections that send requests and read no answer.
pub(super) async fn readers(stage: &mut Stage) -> anyhow::Result<()> {
    stage.span *= LONGER;
    let admin = stage.admin();
    stage
        .crowd(CONNECTIONS, move |_, number| async move {
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(NARROW_BUFFER)?;
            let connect = timeout(CONNECT, socket.connect(admin));
            let mut stream = connect.await.context("it cannot connect")??;
            let path = if number % 2 == 0 { "/metrics" } else { "/api/events" };
            let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
            // Write until the socket accepts no more bytes; the last write then blocks for ever.
            loop {
                stream.write_all(request.as_bytes()).await?;
            }
        })
        .await
}
