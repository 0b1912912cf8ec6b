//! The output of a command, for people and for programs.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use serde::Serialize;
use tgm_session_server::text;

use crate::failure::Failure;

/// Moves to the start of the line and clears it.
const CLEAR: &str = "\r\x1b[2K";

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value per line.
    Json,
}

/// Standard output in the chosen format.
///
/// Only terminals get colours, and not if `NO_COLOR` is set. Every line is flushed, so that it is visible at
/// once, also through a pipe.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
    stream: AutoStream<std::io::Stdout>,
    live: bool,
    /// Whether the last line is one that [`Output::show_live`] left.
    dirty: bool,
}

impl Output {
    /// Prints to standard output in `format`.
    pub(crate) fn new(format: Format) -> Self {
        let stdout = std::io::stdout();
        // A terminal that cannot move its cursor gets the same lines as a pipe.
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let live = format == Format::Text && stdout.is_terminal() && !dumb;
        Self { format, stream: AutoStream::auto(stdout), live, dirty: false }
    }

    /// Whether the format is JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Whether the output is a terminal, whose last line may change.
    pub(crate) const fn is_live(&self) -> bool {
        self.live
    }

    /// Prints `thing`: its text for people, or itself as one line of JSON.
    ///
    /// # Errors
    ///
    /// [`Failure::OutputClosed`] when the reader is gone, [`Failure::Failed`] when writing failed.
    pub(crate) fn show(&mut self, thing: &(impl Serialize + fmt::Display)) -> Result<(), Failure> {
        match self.format {
            Format::Text => self.show_text(thing),
            Format::Json => self.show_values(std::slice::from_ref(thing)),
        }
    }

    /// Prints many things: one `text` of all of them for people, or each as one line of JSON.
    ///
    /// # Errors
    ///
    /// As [`Output::show`].
    pub(crate) fn show_all<T: Serialize>(
        &mut self,
        things: &[T],
        text: impl FnOnce(&[T]) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Text => self.show_text(&text(things)),
            Format::Json => self.show_values(things),
        }
    }

    fn show_text(&mut self, text: &impl fmt::Display) -> Result<(), Failure> {
        self.clear_live()?;
        writeln!(self.stream, "{}", escape_all(text))?;
        Ok(self.stream.flush()?)
    }

    fn show_values<T: Serialize>(&mut self, values: &[T]) -> Result<(), Failure> {
        self.clear_live()?;
        for value in values {
            let json = serde_json::to_string(value)
                .map_err(|error| Failure::Failed(format!("cannot print JSON: {error}")))?;
            writeln!(self.stream, "{}", text::plain_json(&json))?;
        }
        Ok(self.stream.flush()?)
    }

    /// Shows `text` on the last line of a terminal until the next [`Output::show_live`] or
    /// [`Output::clear_live`]. Shows nothing if the output is not a terminal.
    pub(crate) fn show_live(&mut self, text: &impl fmt::Display) -> Result<(), Failure> {
        if self.live {
            self.dirty = true;
            write!(self.stream, "{CLEAR}{}", escape_all(text))?;
            self.stream.flush()?;
        }
        Ok(())
    }

    /// Clears what [`Output::show_live`] showed.
    pub(crate) fn clear_live(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.dirty) {
            write!(self.stream, "{CLEAR}")?;
            self.stream.flush()?;
        }
        Ok(())
    }
}

/// The style of errors.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// The style of success.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// The style of refusals and warnings.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default();
/// The style of names and bars.
pub(crate) const NAME: Style = AnsiColor::Cyan.on_default();
/// The style of headings.
pub(crate) const TITLE: Style = Style::new().bold();
/// The style of side remarks.
pub(crate) const FAINT: Style = Style::new().dimmed();

/// `text` in `style`.
pub(crate) fn styled(style: Style, text: impl fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// `1 lease`, `2 leases`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// `text` on one line, with everything escaped that is not plain: ids and messages come from callers, and
/// must not move the cursor or change how the rest of the line is shown.
pub(crate) fn plain(text: &str) -> String {
    text::plain(text).into_owned()
}

/// Escapes all that is not plain, except ends of lines and colours: a part of the text may not have passed
/// through [`plain`].
fn escape_all(text: &impl fmt::Display) -> String {
    text::plain_but(&text.to_string(), |char| matches!(char, '\n' | '\x1b')).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_text_are_escaped() {
        assert_eq!(plain("ré\x1b[2J\nb\u{202e}"), "ré\\u{1b}[2J\\nb\\u{202e}");
    }

    #[test]
    fn escape_all_keeps_only_colours_and_ends_of_lines() {
        let text = styled(BAD, "a\nb\u{202e}\r");
        assert_eq!(escape_all(&text), styled(BAD, "a\nb\\u{202e}\\r"));
    }
}
