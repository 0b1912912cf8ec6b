//! Where log lines go: standard error, never standard output.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// How much is logged.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    /// What is logged to standard error: off, error, warn, info, debug, trace, or a filter per
    /// module like `info,tgm_session_server=debug` [default: info for serve, else warn].
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "TGM_SESSION_LOG",
        hide_env_values = true,
        help_heading = "Output"
    )]
    log: Option<String>,
}

impl Logs {
    /// Starts logging for the whole process.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when the filter cannot be read.
    pub(crate) fn start(&self, is_server: bool) -> Result<(), Failure> {
        let filter = self.log.as_deref().unwrap_or(if is_server { "info" } else { "warn" });
        let filter = EnvFilter::builder().parse(filter).map_err(|error| {
            Failure::Usage(format!("--log {filter:?} is not a log filter: {error}"))
        })?;
        let colours = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(colours)
            // A log that nobody reads must not end the process with a panic.
            .log_internal_errors(false)
            .init();
        Ok(())
    }
}
