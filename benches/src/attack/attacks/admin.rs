//! Attacks on the places of the admin port.

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

/// How many times longer than others these attacks take, so that clients that wait for a place show.
const LONGER: u32 = 3;

/// How long an attacker waits for its connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Connections that ask for nothing.
pub(super) async fn silent(stage: &mut Stage) -> anyhow::Result<()> {
    hold(stage, |_| "").await
}

/// Connections that asked for something, were answered, and stay.
pub(super) async fn idle(stage: &mut Stage) -> anyhow::Result<()> {
    hold(stage, |_| "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await
}

/// Holds connections open, each of which asks what `asks` says of its number, and reads the answers.
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

/// Connections that ask for more than they read.
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
            // Until the socket takes no more, and then for ever.
            loop {
                stream.write_all(request.as_bytes()).await?;
            }
        })
        .await
}
