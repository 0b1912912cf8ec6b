//! Where log lines go: standard error, never standard output.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::time::SystemTime;

use serde_json::json;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::output;

/// How much is logged, and how.
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

    /// How log lines look, and the error that ends a command: text for people, or one JSON object
    /// per line.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "TGM_SESSION_LOG_FORMAT",
        hide_env_values = true,
        help_heading = "Output"
    )]
    log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: timestamp, level, target, message and the fields, one object per line.
    Json,
}

impl Logs {
    /// How log lines look.
    pub(crate) const fn format(&self) -> LogFormat {
        self.log_format
    }

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
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            // A log that nobody reads must not end the process with a panic.
            .log_internal_errors(false);
        match self.log_format {
            LogFormat::Text => subscriber.with_ansi(colours).init(),
            LogFormat::Json => subscriber.json().flatten_event(true).init(),
        }
        Ok(())
    }
}

impl LogFormat {
    /// Writes the error that ends a command, whatever is logged. Whether anybody reads it changes
    /// nothing.
    pub(crate) fn show_error(self, message: impl Display) {
        let message = message.to_string();
        let mut stderr = anstream::stderr();
        let _ = match self {
            Self::Text => {
                writeln!(stderr, "{}: {}", output::error("error"), output::plain(&message))
            }
            Self::Json => {
                let timestamp = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
                let target = env!("CARGO_CRATE_NAME");
                let line = json!({
                    "timestamp": timestamp, "level": "ERROR", "message": message, "target": target,
                });
                writeln!(stderr, "{line}")
            }
        };
    }
}
