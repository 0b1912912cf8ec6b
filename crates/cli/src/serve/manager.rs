//! What the service manager is told, if there is one: systemd's notify protocol (`Type=notify`).
//!
//! The watchdog is fed while every thread that serves gRPC turns and the store answers. A store that
//! fails loudly does answer: it refuses changes, `/readyz` says so, keep-alives go on, and a restart
//! would not mend the disk. What a restart does mend is a process that hangs.

use std::convert::Infallible;
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

fn tell(states: &[NotifyState<'_>]) {
    /// Told once until it works again: the watchdog is fed every few seconds.
    static FAILS: AtomicBool = AtomicBool::new(false);
    let told = sd_notify::notify(states);
    let failed_before = FAILS.swap(told.is_err(), Ordering::Relaxed);
    if let (Err(error), false) = (told, failed_before) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
