//! Errors and warnings about a policy file, and their places.

use std::fmt;
use std::path::PathBuf;

/// The errors in a policy file: the first one, and all others.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct PolicyError {
    /// Its place in the file.
    pub place: Place,
    /// The problem, in one line.
    pub problem: String,
    /// All other errors, in the order of the file.
    pub others: Vec<Self>,
}

impl PolicyError {
    pub(crate) fn new(place: Place, problem: impl Into<String>) -> Self {
        Self { place, problem: problem.into(), others: Vec::new() }
    }

    /// Returns each error separately.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let Self { place, problem, others } = self;
        std::iter::once(Self::new(place, problem)).chain(others)
    }
}

/// Writes the first error and the number of the others.
impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)?;
        match self.others.len() {
            0 => Ok(()),
            1 => f.write_str(" (and 1 more error)"),
            more => write!(f, " (and {more} more errors)"),
        }
    }
}

/// Something in a policy file that is allowed but probably a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Its place in the file.
    pub place: Place,
    /// The problem, in one line.
    pub problem: String,
    /// The metric of a budget, if no known service reports this metric. A caller that knows which
    /// metrics were reported can drop the warning.
    pub unheard_of: Option<Box<str>>,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// A place in a policy file. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}
