//! Ctrl-C, on systems without Unix signals.

use std::convert::Infallible;
use std::io;

use tokio::signal::ctrl_c;

use crate::failure::Failure;

/// Ctrl-C.
#[derive(Debug)]
pub(crate) struct Signals(());

impl Signals {
    /// Does nothing yet: the first [`Signals::next`] takes over Ctrl-C.
    pub(crate) fn take() -> Result<Self, Failure> {
        Ok(Self(()))
    }

    /// As [`Signals::take`].
    pub(crate) fn take_with_hangup() -> Result<Self, Failure> {
        Self::take()
    }

    /// Waits for the next one and returns its name. Cancellation safe.
    pub(crate) async fn next(&mut self) -> &'static str {
        match ctrl_c().await {
            Ok(()) => "Ctrl-C",
            Err(error) => never(&error).await,
        }
    }
}

/// Logs that Ctrl-C cannot be taken over, and waits forever.
async fn never<T>(error: &io::Error) -> T {
    tracing::warn!(%error, "cannot take over Ctrl-C");
    std::future::pending().await
}

/// A stand-in for SIGHUP: here only the admin port and a changed file reload the policy.
#[derive(Debug)]
pub(crate) struct Hangups(());

impl Hangups {
    /// Does nothing.
    pub(crate) fn take() -> Result<Self, Failure> {
        Ok(Self(()))
    }

    /// Waits forever.
    pub(crate) async fn next(&mut self) {
        match std::future::pending::<Infallible>().await {}
    }
}
