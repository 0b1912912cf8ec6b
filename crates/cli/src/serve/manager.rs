//! What the service manager is told, if there is one: systemd's notify protocol (`Type=notify`).
//!
//! The watchdog is fed while every thread that serves gRPC turns and the store answers. A store that
//! fails loudly does answer: it refuses changes, `/readyz` says so, keep-alives go on, and a restart
//! would not mend the disk. What a restart does mend is a process that hangs.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use sd_notify::NotifyState;
use tgm_session_server::Running;

/// The server accepts calls; `status` says where.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The policy is loaded again; [`ready`] says that it is done.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot tell the service manager of a reload"),
    }
}

/// The server takes no calls any more, and will end.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("calls under way may finish")]);
}

/// Feeds the watchdog for ever, as long as `server` responds; waits for ever where there is none.
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

/// Sends to where the manager listens, if there is one: a path or, behind an `@`, a name that is not
/// in the file system. sd-notify knows paths alone.
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
    /// Told once until it works again: the watchdog is fed every few seconds.
    static FAILS: AtomicBool = AtomicBool::new(false);
    let told = notify(states);
    let failed_before = FAILS.swap(told.is_err(), Ordering::Relaxed);
    if let (Err(error), false) = (told, failed_before) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
