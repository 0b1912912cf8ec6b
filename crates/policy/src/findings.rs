//! Collects errors and warnings about a file while it is read, and finds their places.

#[cfg(test)]
use std::cell::Cell;
use std::ops::Range;
use std::path::Path;

use crate::error::{Place, PolicyError, Warning};

/// The most warnings about one file. Each of them is a line in the log at each load.
pub(crate) const MAX_WARNINGS: usize = 100;

/// The most errors about one file.
const MAX_ERRORS: usize = 100;

#[cfg(test)]
thread_local! {
    /// How many bytes were scanned to find places.
    pub(crate) static SCANNED: Cell<usize> = const { Cell::new(0) };
}

/// The errors and warnings about a file, up to a limit, and how many more there are.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    errors: Vec<PolicyError>,
    errors_left_out: usize,
    warnings: Vec<Warning>,
    warnings_left_out: usize,
}

impl Findings {
    pub(crate) fn error(&mut self, error: PolicyError) {
        if self.are_full() {
            self.errors_left_out += 1;
        } else {
            self.errors.push(error);
        }
    }

    /// Adds an error, unless the error before is on the same line.
    pub(crate) fn error_on_a_new_line(&mut self, error: PolicyError) {
        if self.errors.last().is_none_or(|last| last.place.line != error.place.line) {
            self.error(error);
        }
    }

    /// Whether there is no room for another error.
    pub(crate) fn are_full(&self) -> bool {
        self.errors.len() >= MAX_ERRORS
    }

    /// Returns the value of a check, or records its error and returns `None`.
    pub(crate) fn ok_or_record<T>(&mut self, checked: Result<T, PolicyError>) -> Option<T> {
        checked.map_err(|error| self.error(error)).ok()
    }

    pub(crate) fn warn(&mut self, warning: impl FnOnce() -> Warning) {
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(warning());
        } else {
            self.warnings_left_out += 1;
        }
    }

    /// Returns the warnings, or all errors as one, in the order of the file.
    pub(crate) fn into_result(
        mut self,
        source: &SourceText<'_>,
    ) -> Result<Vec<Warning>, PolicyError> {
        if self.errors_left_out > 0 {
            let problem = format!("{} more errors are left out", self.errors_left_out);
            self.errors.push(source.error(source.text.len()..source.text.len(), problem));
        }
        let order = |error: &PolicyError| {
            let Place { file, line, column } = &error.place;
            (**file != *source.name, *line, *column)
        };
        self.errors.sort_by_key(order);
        let mut errors = self.errors.into_iter();
        if let Some(first) = errors.next() {
            return Err(PolicyError { others: errors.collect(), ..first });
        }
        if self.warnings_left_out > 0 {
            let problem = format!("{} more warnings are left out", self.warnings_left_out);
            self.warnings.push(source.warning(0, problem));
        }
        Ok(self.warnings)
    }
}

/// The text of a file, to find places in it.
pub(crate) struct SourceText<'a> {
    text: &'a str,
    pub(crate) name: &'a Path,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> SourceText<'a> {
    pub(crate) fn new(text: &'a str, name: &'a Path) -> Self {
        let breaks = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self { text, name, lines: std::iter::once(0).chain(breaks).collect() }
    }

    /// The place at an offset. The time depends on the length of the line, not of the file.
    pub(crate) fn place(&self, offset: usize) -> Place {
        let offset = if self.text.is_char_boundary(offset) { offset } else { self.text.len() };
        let line = self.lines.partition_point(|start| *start <= offset);
        let before = &self.text[self.lines[line - 1]..offset];
        #[cfg(test)]
        SCANNED.with(|scanned| scanned.set(scanned.get() + before.len()));
        Place { file: self.name.to_owned(), line, column: before.chars().count() + 1 }
    }

    pub(crate) fn warning(&self, offset: usize, problem: impl Into<String>) -> Warning {
        Warning { place: self.place(offset), problem: problem.into(), unheard_of: None }
    }

    pub(crate) fn error(&self, span: Range<usize>, problem: impl Into<String>) -> PolicyError {
        PolicyError::new(self.place(span.start), problem)
    }

    /// The error of the TOML parser, with its place and in one line.
    pub(crate) fn of_toml(&self, error: &toml::de::Error) -> PolicyError {
        let span = error.span().unwrap_or(0..0);
        // toml shows the place on further lines of the message; the error has the place already.
        self.error(span, error.message().lines().collect::<Vec<_>>().join("; "))
    }
}
