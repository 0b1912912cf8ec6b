//! Informs the service manager, if there is one, by systemd's notify protocol (`Type=notify`).
//!
//! The watchdog is fed while every thread that serves gRPC responds and the store answers. A store that
//! has failed does answer: it refuses changes, `/readyz` says so, and keep-alives continue. A restart would
//! not repair the disk. It helps only against a process that hangs.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;
use tgm_session_server::Running;

/// Says that the server accepts calls; `status` has the addresses.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that the policy is being loaded again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell the service manager of a reload"),
    }
}

/// Says that the server accepts no more calls and will end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("calls in flight may finish")]);
}

/// Feeds the watchdog forever, while `server` responds. Without a watchdog it waits forever.
pub(super) async fn feed_watchdog(server: &Running) -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return std::future::pending().await;
    };
    // Twice within the limit, and once more for what is late.
    let mut ticks = tokio::time::interval(limit / 3);
    loop {
        ticks.tick().await;
        if server.responds().await {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// Sends a message to the socket of the manager, if there is one: a path, or after an `@` an abstract name.
/// sd-notify supports paths only.
fn notify(states: &[NotifyState<'_>]) -> io::Result<()> {
    let socket = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty());
    let Some(socket) = socket else { return Ok(()) };
    match socket.as_encoded_bytes().strip_prefix(b"@") {
        None => sd_notify::notify(states),
        Some(name) => {
            let message: String = states.iter().map(|state| format!("{state}\n")).collect();
            send_to_name(name, message.as_bytes())
        }
    }
}

fn send_to_name(name: &[u8], message: &[u8]) -> io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let address = SocketAddr::from_abstract_name(name)?;
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

fn tell(states: &[NotifyState<'_>]) {
    /// A failure is logged once until a message gets through: the watchdog is fed every few seconds.
    static FAILS: AtomicBool = AtomicBool::new(false);
    let sent = notify(states);
    let failed_before = FAILS.swap(sent.is_err(), Ordering::Relaxed);
    if let (Err(error), false) = (sent, failed_before) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
