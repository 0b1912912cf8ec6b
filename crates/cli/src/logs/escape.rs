//! Escapes log lines: text of callers cannot start a line, nor change how one is shown.

use std::io::{self, Write};

use tgm_session_server::text;
use tracing_subscriber::fmt::MakeWriter;

use super::format::LogFormat;

/// Escapes what is not plain in each event before it is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Escape<W> {
    to: W,
    format: LogFormat,
    /// Whether events have colours, which are sequences of control characters.
    is_coloured: bool,
}

impl<W> Escape<W> {
    pub(crate) const fn new(to: W, format: LogFormat, is_coloured: bool) -> Self {
        Self { to, format, is_coloured }
    }

    /// One event, which ends its line.
    fn line(&self, event: &[u8]) -> Vec<u8> {
        let event = String::from_utf8_lossy(event);
        let (event, end) = match event.strip_suffix('\n') {
            Some(event) => (event, "\n"),
            None => (&*event, ""),
        };
        let shown = match self.format {
            LogFormat::Text => text::plain_but(event, |char| self.is_coloured && char == '\x1b'),
            LogFormat::Json => text::plain_json(event),
        };
        [shown.as_bytes(), end.as_bytes()].concat()
    }
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Escape<W> {
    type Writer = Escape<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Escape::new(self.to.make_writer(), self.format, self.is_coloured)
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        Escape::new(self.to.make_writer_for(meta), self.format, self.is_coloured)
    }
}

impl<W: Write> Write for Escape<W> {
    /// Takes one whole event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = self.line(event);
        self.to.write_all(&line)?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat, is_coloured: bool, event: &str) -> String {
        String::from_utf8(Escape::new((), format, is_coloured).line(event.as_bytes())).unwrap()
    }

    #[test]
    fn an_event_is_one_line_without_control_characters_of_its_text() {
        let event = "\x1b[31mERROR\x1b[0m of \u{202e}acme\nINFO all is well\n";
        assert_eq!(
            line(LogFormat::Text, true, event),
            "\x1b[31mERROR\x1b[0m of \\u{202e}acme\\nINFO all is well\n"
        );
        assert_eq!(line(LogFormat::Text, false, "a\x1b[2J\u{9b}2J\n"), "a\\u{1b}[2J\\u{9b}2J\n");
        assert_eq!(
            line(LogFormat::Json, false, "{\"organization\":\"\u{202e}acme\"}\n"),
            "{\"organization\":\"\\u202eacme\"}\n"
        );
    }
}
