//! Where log lines go: standard error, never standard output.
//!
//! A server never waits for the reader of its standard error: a queue is in front of it as soon as logging
//! starts. Other commands write to standard error directly.

mod escape;
mod format;
mod queue;

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::failure::Failure;
use escape::Escape;
use format::LogFormat;
use queue::Queue;

/// How long the end of the process waits for the queue to be written.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// The queue in front of standard error, in a server.
static QUEUE: OnceLock<Queue> = OnceLock::new();

/// The level and the format of the log.
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

    /// The format of log lines, and of the error that ends a command: text for people, or one JSON
    /// object per line.
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

impl Logs {
    /// The format of log lines.
    pub(crate) const fn format(&self) -> LogFormat {
        self.log_format
    }

    /// Starts logging for the whole process.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if the filter is invalid, [`Failure::Failed`] if a server cannot start the thread
    /// that writes the log.
    pub(crate) fn start(&self, is_server: bool) -> Result<(), Failure> {
        let filter = self.log.as_deref().unwrap_or(if is_server { "info" } else { "warn" });
        let filter = EnvFilter::builder().parse(filter).map_err(|error| {
            Failure::Usage(format!("--log {filter:?} is not a log filter: {error}"))
        })?;
        let colours = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let (format, is_coloured) =
            (self.log_format, colours && self.log_format == LogFormat::Text);
        let writer = if is_server {
            BoxMakeWriter::new(Escape::new(self.start_queue()?, format, is_coloured))
        } else {
            BoxMakeWriter::new(Escape::new(std::io::stderr, format, is_coloured))
        };
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(writer)
            // A log that cannot be written must not end the process with a panic.
            .log_internal_errors(false);
        match self.log_format {
            LogFormat::Text => subscriber.with_ansi(colours).init(),
            LogFormat::Json => subscriber.json().flatten_event(true).init(),
        }
        Ok(())
    }

    /// Puts a queue in front of standard error, also for the messages of panics.
    fn start_queue(&self) -> Result<Queue, Failure> {
        let report =
            |lines| tracing::warn!(lines, "log lines were dropped: nobody read them in time");
        let queue = Queue::start(std::io::stderr(), report)
            .map_err(|error| Failure::Failed(format!("cannot start the log: {error}")))?;
        let (format, to) = (self.log_format, queue.clone());
        // The panic hook of the standard library would wait for the reader of standard error.
        std::panic::set_hook(Box::new(move |panic| to.push_last(&format.panic_line(panic))));
        Ok(QUEUE.get_or_init(|| queue).clone())
    }
}

/// Counts the log lines that this process has dropped because the queue was full.
pub(crate) fn dropped() -> Arc<AtomicU64> {
    QUEUE.get().map(Queue::dropped).unwrap_or_default()
}

/// Waits until all log lines are written, for a second at most.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_WITHIN);
    }
}

/// Writes the error that ends a command, whatever the log filter is. Ignores a failure to write.
pub(crate) fn show_errors(format: LogFormat, messages: &[&str]) {
    for message in messages {
        let line = format.error_line(message);
        match QUEUE.get() {
            Some(queue) => queue.push_last(&line),
            None => drop(std::io::stderr().write_all(&line)),
        }
    }
}
