//! What is wrong in a policy file, or likely not meant, and where.

use std::fmt;
use std::path::PathBuf;

/// What is wrong with a policy file, and where: the first thing, and what else there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct PolicyError {
    /// Where it stands.
    pub place: Place,
    /// What is wrong, in one line.
    pub problem: String,
    /// What else is wrong, in the order in which it stands in the file.
    pub others: Vec<Self>,
}

impl PolicyError {
    pub(crate) fn new(place: Place, problem: impl Into<String>) -> Self {
        Self { place, problem: problem.into(), others: Vec::new() }
    }

    /// Everything that is wrong, each for itself.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let Self { place, problem, others } = self;
        std::iter::once(Self::new(place, problem)).chain(others)
    }
}

/// Writes the first thing, and how many there are beside it.
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

/// Something in a policy file that is allowed but likely not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where it stands.
    pub place: Place,
    /// What to think about, in one line.
    pub problem: String,
    /// The metric it is about, where a budget is on one that no service is known to report. Whoever
    /// knows which metrics were reported need not believe it.
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
