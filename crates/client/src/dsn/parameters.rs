//! The parameters of a session URL, read one by one and by type.

use std::fmt;
use std::time::Duration;

use super::{Dsn, Given, Parameter, invalid};
use crate::duration::parse_duration;
use crate::error::Error;
use crate::secret::Secret;

/// The parameters of a session URL, read one by one and by type.
///
/// Every name that is read becomes known, and [`Parameters::finish`] refuses the other ones. So a
/// misspelled parameter is always found. A parameter with an empty value counts as absent.
///
/// ```
/// let dsn = tgm_session::Dsn::parse("counting://?limit=3")?;
/// let mut parameters = dsn.parameters();
/// assert_eq!(parameters.count(&["limit"])?, Some(3));
/// parameters.finish()?;
/// # Ok::<(), tgm_session::Error>(())
/// ```
#[derive(Debug)]
pub struct Parameters<'a> {
    dsn: &'a Dsn,
    known: Vec<&'static str>,
    hidden: Vec<&'static str>,
}

impl<'a> Parameters<'a> {
    pub(super) const fn new(dsn: &'a Dsn) -> Self {
        Self { dsn, known: Vec::new(), hidden: Vec::new() }
    }

    /// Returns the value of `name`.
    ///
    /// It may be the value of a variable: errors about it are made by [`Parameters::wrong`].
    pub fn text(&mut self, name: &'static str) -> Option<&'a str> {
        self.get(name).map(|parameter| parameter.value.expose())
    }

    /// Returns the value of `name`, which is never shown in `Debug` or in an error.
    pub fn secret(&mut self, name: &'static str) -> Option<Secret> {
        self.hidden.push(name);
        self.get(name).map(|parameter| parameter.value.clone())
    }

    /// Returns whether `name` is set: only the text `true` is true.
    pub fn flag(&mut self, name: &'static str) -> bool {
        self.text(name) == Some("true")
    }

    /// Returns the length of time of `name`, in Go's syntax.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it is not one.
    pub fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, Error> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let read = parse_duration(text);
        read.map(Some).map_err(|error| self.wrong(name, error).caused_by(error))
    }

    /// Returns the number that any of `names` gives: first the current name, then old ones.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it is not a whole number from 0 up, or when two of the
    /// names give different ones.
    pub fn count(&mut self, names: &[&'static str]) -> Result<Option<u64>, Error> {
        let mut found: Option<(&'static str, u64)> = None;
        for name in names {
            let Some(text) = self.text(name) else { continue };
            let count = text.parse::<u64>();
            let count = count
                .map_err(|error| self.wrong(name, "is not a whole number").caused_by(error))?;
            match found {
                None => found = Some((name, count)),
                Some((other, same)) if same == count => {
                    tracing::debug!("the session URL gives `{other}` and its old name `{name}`");
                }
                Some((other, _)) => {
                    return Err(invalid(format_args!(
                        "gives `{other}` and its old name `{name}`, and they differ"
                    )));
                }
            }
        }
        Ok(found.map(|(_, count)| count))
    }

    /// Makes an error about the value of `name`, which has a `problem`, as "is not a colour".
    ///
    /// The message shows the names of variables instead of their values.
    ///
    /// ```
    /// let dsn = tgm_session::Dsn::parse_with("x://?mode=$MODE", |_| Some("secret".into()))?;
    /// let parameters = dsn.parameters();
    /// assert_eq!(
    ///     parameters.wrong("mode", "is not a mode").to_string(),
    ///     "invalid argument: the session URL gives `mode=$MODE`: `$MODE` is not a mode"
    /// );
    /// # Ok::<(), tgm_session::Error>(())
    /// ```
    pub fn wrong(&self, name: &str, problem: impl fmt::Display) -> Error {
        if self.hidden.contains(&name) {
            return invalid(format_args!("gives a value of `{name}` that {problem}"));
        }
        let value = self.dsn.find(name).map(Parameter::given).unwrap_or_default();
        invalid(format_args!("gives `{name}={value}`: `{value}` {problem}"))
    }

    /// Returns the value of `name`, with how messages write it.
    pub(crate) fn given(&mut self, name: &'static str) -> Option<Given> {
        self.get(name).map(Parameter::given)
    }

    /// Returns the file that `name` gives, with how messages write it.
    #[cfg(feature = "tgm")]
    pub(crate) fn file(&mut self, name: &'static str) -> Option<connect::NamedFile> {
        let given = self.given(name)?;
        let shown = given.to_string();
        Some(connect::NamedFile { path: given.text().into(), shown, setting: None })
    }

    /// Refuses every parameter that was not read.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] names the first one and the nearest known one.
    pub fn finish(self) -> Result<(), Error> {
        let is_unknown = |parameter: &&Parameter| !self.known.contains(&parameter.name.text());
        let Some(Parameter { name, .. }) = self.dsn.parameters.iter().find(is_unknown) else {
            return Ok(());
        };
        let scheme = &self.dsn.scheme;
        let near = |known: &&&str| strsim::osa_distance(known, name.text());
        Err(match self.known.iter().min_by_key(near) {
            Some(known) => invalid(format_args!(
                "gives the parameter `{name}`, which {scheme}:// does not know; the nearest is `{known}`"
            )),
            None => invalid(format_args!(
                "gives the parameter `{name}`, but {scheme}:// knows no parameters"
            )),
        })
    }

    /// Finds the parameter `name`, unless its value is empty, which stands for the default.
    fn get(&mut self, name: &'static str) -> Option<&'a Parameter> {
        self.known.push(name);
        self.dsn.find(name).filter(|parameter| !parameter.value.expose().is_empty())
    }
}
