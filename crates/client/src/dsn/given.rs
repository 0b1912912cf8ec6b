//! The texts of a session URL, and how messages write them.

use std::fmt;

/// A text that a URL gives. Wherever it is shown, a variable stands for what came out of it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    text: String,
    /// Absent when it is the text itself.
    shown: Option<String>,
}

impl Given {
    /// A text that messages write as `shown`, if that is another.
    pub(crate) fn new(text: impl Into<String>, shown: Option<String>) -> Self {
        Self { text: text.into(), shown }
    }

    /// The text itself, which no message may show.
    pub(crate) fn text(&self) -> &str {
        &self.text
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
