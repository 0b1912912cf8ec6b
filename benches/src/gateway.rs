//! A session server of the time before `SessionControl`, so that keep-alives go by unary calls: it
//! answers `UNIMPLEMENTED` there and hands every other call to the server behind it.

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
/// No port can be had, or nobody listens at `address`.
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
