//! What comes out of reading a policy file: a policy and what to say about it, or what is wrong.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Policy;
use super::check::KNOWN_METRICS;
use crate::nearest::nearest;
use crate::settings::Given;
use crate::watch::{Digest, Read};

/// A policy file that was read: the policy, the settings beside it, and what to think about.
#[derive(Debug)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// The `[server]` section.
    pub server: Given,
    /// What is allowed but likely not meant.
    pub warnings: Vec<Warning>,
    /// What a server needs to watch the file; `None` for what was not read from a file that can be
    /// read again.
    pub file: Option<PolicyFile>,
}

/// A policy file as it was when it was loaded: with it a server knows when the file says something
/// else.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    /// The file itself, and then those that it names.
    files: Read,
    server: Given,
    warnings: Vec<Warning>,
}

impl PolicyFile {
    /// `files` are the policy file and then those that it names, each with the digest of what it
    /// said.
    pub(super) fn new(files: Read, loaded: &Loaded) -> Self {
        Self { files, server: loaded.server.clone(), warnings: loaded.warnings.clone() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.files[0].0
    }

    /// Its `[server]` section.
    pub fn server(&self) -> &Given {
        &self.server
    }

    /// What in it is allowed but likely not meant.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The file and then those that it names, each with the digest of what it said.
    pub(crate) fn files(&self) -> &[(PathBuf, Option<Digest>)] {
        &self.files
    }
}

/// What is wrong with a policy file, and where: the first thing, and what else there is.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub struct PolicyError {
    /// Where it stands.
    pub place: Place,
    /// What is wrong, in one line.
    pub problem: String,
    /// What else is wrong, in the order in which it stands in the file.
    pub others: Vec<Self>,
    /// What of the `[server]` section could be read: it may be wrong too.
    pub server: Given,
}

impl PolicyError {
    pub(super) fn new(place: Place, problem: impl Into<String>) -> Self {
        Self { place, problem: problem.into(), others: Vec::new(), server: Given::default() }
    }

    /// Everything that is wrong, each for itself.
    pub fn each(self) -> impl Iterator<Item = Self> {
        let Self { place, problem, others, server: _ } = self;
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

impl Warning {
    /// The same, as whoever knows that no report has carried the metric puts it.
    pub(crate) fn of_unreported(&self, metric: &str) -> Self {
        let nearest = nearest(metric, KNOWN_METRICS);
        let problem =
            format!("a budget on {metric:?}, which no report has carried so far{nearest}");
        Self { problem, ..self.clone() }
    }
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
