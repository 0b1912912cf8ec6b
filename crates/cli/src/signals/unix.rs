//! Signals of Unix.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// SIGINT, SIGTERM, and for some commands SIGHUP.
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

    /// Takes over SIGHUP too, for a command that ends with its terminal.
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

/// SIGHUP, which makes a server load its policy again.
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

    /// Waits for the next one. Signals that came before this call count as one. Cancellation safe.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}

fn listening(signal: io::Result<Signal>) -> Result<Signal, Failure> {
    signal.map_err(|error| Failure::Failed(format!("cannot take over signals: {error}")))
}
