//! How the soak tells where it is.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// How often a line is written where nobody looks at a terminal.
const SELDOM: Duration = Duration::from_secs(10);

/// One line that changes on a terminal, and a line now and then elsewhere.
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
        // Who closed standard error does not want to know.
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
