//! Shows the progress of the soak.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often a line is written when standard error is no terminal.
const SELDOM: Duration = Duration::from_secs(10);

/// One line that changes on a terminal; elsewhere a new line every [`SELDOM`].
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    shown_at: Option<Instant>,
}

impl Progress {
    /// Progress on standard error.
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), shown_at: None }
    }

    /// Shows `line`; without a terminal only when the last line is older than [`SELDOM`].
    pub(crate) fn show(&mut self, line: &str) {
        let mut err = std::io::stderr().lock();
        let shown = if self.terminal {
            write!(err, "\r\x1b[2K{line}").and_then(|()| err.flush())
        } else if self.shown_at.is_none_or(|shown_at| shown_at.elapsed() >= SELDOM) {
            self.shown_at = Some(Instant::now());
            writeln!(err, "{line}")
        } else {
            Ok(())
        };
        // A closed standard error is no reason to stop.
        drop(shown);
    }

    /// Ends the line that changes, so that what comes next has its own.
    pub(crate) fn end(&mut self) {
        if self.terminal {
            eprintln!();
        }
        self.shown_at = None;
    }
}
