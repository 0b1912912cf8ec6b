//! The two formats of the log, and the lines of errors and panics.

use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::time::SystemTime;

use anstream::AutoStream;
use serde_json::json;
use tgm_session_server::text;

use crate::output::{BAD, plain, styled};

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: timestamp, level, target, message and the fields, one object per line.
    Json,
}

impl LogFormat {
    /// The line of an error.
    pub(super) fn error_line(self, message: &str) -> Vec<u8> {
        match self {
            Self::Text => {
                let choice = AutoStream::choice(&std::io::stderr());
                let mut line = AutoStream::new(Vec::new(), choice);
                writeln!(line, "{}: {}", styled(BAD, "error"), plain(message))
                    .expect("a vector takes everything");
                line.into_inner()
            }
            Self::Json => json_line(message),
        }
    }

    /// The line or lines of a panic.
    pub(super) fn panic_line(self, panic: &PanicHookInfo<'_>) -> Vec<u8> {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let backtrace = std::backtrace::Backtrace::capture();
        let message = match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => {
                format!("thread {name:?} {panic}\n{backtrace}")
            }
            _ => format!("thread {name:?} {panic}"),
        };
        match self {
            // A backtrace has many lines.
            Self::Text => {
                let message = text::plain_but(&message, |char| char == '\n');
                format!("{message}\n").into_bytes()
            }
            Self::Json => json_line(&message),
        }
    }
}

fn json_line(message: &str) -> Vec<u8> {
    let timestamp = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let target = env!("CARGO_CRATE_NAME");
    let line = json!({
        "timestamp": timestamp, "level": "ERROR", "message": message, "target": target,
    });
    format!("{}\n", text::plain_json(&line.to_string())).into_bytes()
}
