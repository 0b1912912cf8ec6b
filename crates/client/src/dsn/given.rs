//! The texts of a session URL, and how messages write them.

use std::fmt;

/// A text of a URL. Messages show the names of variables instead of their values.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    text: String,
    /// Absent when it is the text itself.
    shown: Option<String>,
}

impl Given {
    /// Makes a text that messages write as `shown`, if that differs.
    pub(crate) fn new(text: impl Into<String>, shown: Option<String>) -> Self {
        Self { text: text.into(), shown }
    }

    /// Returns the text itself, which no message may show.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns what messages write instead, if it comes out of a variable.
    pub(crate) fn replaced(&self) -> Option<String> {
        self.shown.clone()
    }

    fn shown(&self) -> &str {
        self.shown.as_deref().unwrap_or(&self.text)
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shown())
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shown().fmt(f)
    }
}
