//! Ctrl-C, where there are no other signals.

use std::convert::Infallible;
use std::io;

use tokio::signal::ctrl_c;

use crate::failure::Failure;

/// Ctrl-C.
#[derive(Debug)]
pub(crate) struct Signals(());

impl Signals {
    /// Asks for nothing yet: Ctrl-C is taken over by the first [`Signals::next`].
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

/// What a process without a console waits for.
async fn never<T>(error: &io::Error) -> T {
    tracing::warn!(%error, "cannot take over Ctrl-C");
    std::future::pending().await
}

/// Nothing asks a server here to load its policy again but the admin port, and its file.
#[derive(Debug)]
pub(crate) struct Hangups(());

impl Hangups {
    /// Takes over nothing.
    pub(crate) fn take() -> Result<Self, Failure> {
        Ok(Self(()))
    }

    /// Waits for ever.
    pub(crate) async fn next(&mut self) {
        match std::future::pending::<Infallible>().await {}
    }
}
