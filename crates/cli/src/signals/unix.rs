//! Signals of Unix.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// Ctrl-C, a polite kill, or the terminal going away.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM: from now on neither ends the process by itself.
    ///
    /// # Errors
    ///
    /// [`Failure::Failed`] when the system refuses. Needs a runtime.
    pub(crate) fn take() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: listening(signal(SignalKind::interrupt()))?,
            terminate: listening(signal(SignalKind::terminate()))?,
            hangup: None,
        })
    }

    /// Takes over SIGHUP too, for a command that belongs to the terminal it was started on.
    ///
    /// # Errors
    ///
    /// As [`Signals::take`].
    pub(crate) fn take_with_hangup() -> Result<Self, Failure> {
        Ok(Self { hangup: Some(listening(signal(SignalKind::hangup()))?), ..Self::take()? })
    }

    /// Waits for the next one and returns its name. Cancellation safe.
    pub(crate) async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hangup => "SIGHUP",
        }
    }
}

/// SIGHUP, which asks a server to load its policy again.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// Takes over SIGHUP: from now on it does not end the process.
    ///
    /// # Errors
    ///
    /// As [`Signals::take`].
    pub(crate) fn take() -> Result<Self, Failure> {
        Ok(Self(listening(signal(SignalKind::hangup()))?))
    }

    /// Waits for the next one; those that come before it is waited for count as one. Cancellation
    /// safe.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}

fn listening(signal: io::Result<Signal>) -> Result<Signal, Failure> {
    signal.map_err(|error| Failure::Failed(format!("cannot take over signals: {error}")))
}
