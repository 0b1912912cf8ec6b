//! Systems without systemd: no service manager is notified.

use std::convert::Infallible;

use tgm_session_server::Running;

pub(super) fn ready(_: &str) {}

pub(super) fn reloading() {}

pub(super) fn stopping() {}

/// Waits for ever.
pub(super) async fn feed_watchdog(_: &Running) -> Infallible {
    std::future::pending().await
}
