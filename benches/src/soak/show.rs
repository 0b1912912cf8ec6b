//! Shows the progress of the soak.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often a line is written when standard error is no terminal.
const SELDOM: Duration = Duration::from_secs(10);

/// One line that changes on a terminal; elsewhere a line now and then.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    told: Option<Instant>,
}

impl Progress {
    /// Progress on standard error.
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), told: None }
    }

    /// Shows `line`, or leaves it where the last one is recent enough.
    pub(crate) fn show(&mut self, line: &str) {
        let mut err = std::io::stderr().lock();
        let shown = if self.terminal {
            write!(err, "\r\x1b[2K{line}").and_then(|()| err.flush())
        } else if self.told.is_none_or(|told| told.elapsed() >= SELDOM) {
            self.told = Some(Instant::now());
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
        self.told = None;
    }
}
