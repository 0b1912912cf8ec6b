//! A proxy that answers `SessionControl` with `UNIMPLEMENTED`, as older servers do, and forwards every other
//! call. Keep-alives through it are unary calls.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::pairs::connect;
use crate::process::announce;

#[path = "../../crates/client/tests/support/gateway.rs"]
mod old;

/// Serves on a free loopback port, for the server at `address`, until the process ends.
///
/// # Errors
///
/// No port is free, or the server at `address` refuses the connection.
pub fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port can be had")?;
        announce(listener.local_addr()?)?;
        loop {
            let (client, _) = listener.accept().await?;
            client.set_nodelay(true)?;
            tokio::spawn(old::serve(client, connect(address).await?));
        }
    })
}
