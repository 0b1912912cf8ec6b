//! Session URLs: one parser for `tgm://`, `local://` and every scheme an application adds.
//!
//! Variables are replaced in the whole text before it is split, as Go does it. So any part may hold the
//! value of a variable. Each part keeps its original text, and messages show that.

mod given;
mod parameters;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use percent_encoding::percent_decode_str;
use url::Url;

pub(crate) use self::given::Given;
pub use self::parameters::Parameters;
use crate::error::Error;
use crate::expand::{Expanded, Variable, expand};
use crate::secret::Secret;

/// The longest session URL, in bytes, before and after its variables are replaced.
const MAX_BYTES: usize = 16 * 1024;

/// The characters with a meaning in a query. The value of a variable with one of them would be cut,
/// split or changed silently.
const SYNTAX: [char; 5] = ['&', '#', '%', '+', ' '];

/// A session URL, split into its parts.
///
/// `$VAR` and `${VAR}` are replaced by the environment first, as Go's `os.ExpandEnv` does; one that
/// is not set is empty, and a warning names it. The empty text means `tgm://`. A user, a path and a
/// fragment mean nothing: a warning says that they are ignored. Of a parameter that is given twice
/// the first counts.
///
/// Parameter values may be secrets: `Debug` and errors never show the value of a variable, or of a
/// parameter that is read with [`Parameters::secret`].
///
/// ```
/// let dsn = tgm_session::Dsn::parse("tgm://sessions.example:9010?plaintext=true")?;
/// assert_eq!((dsn.scheme(), dsn.host(), dsn.port()), ("tgm", Some("sessions.example"), Some(9010)));
/// # Ok::<(), tgm_session::Error>(())
/// ```
#[derive(Clone)]
pub struct Dsn {
    scheme: Given,
    place: Place,
    parameters: Vec<Parameter>,
}

#[derive(Clone)]
struct Place {
    host: Option<Given>,
    port: Option<u16>,
    /// How messages write the port, if it comes out of a variable.
    shown_port: Option<String>,
}

#[derive(Clone)]
struct Parameter {
    name: Given,
    value: Secret,
    /// How messages write the value, if it comes out of a variable.
    shown: Option<String>,
}

impl Parameter {
    fn given(&self) -> Given {
        Given::new(self.value.expose(), self.shown.clone())
    }
}

impl Dsn {
    /// Splits `text` after replacing variables from the environment of the process.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it is not a URL, or when a variable inside of the query holds
    /// `&`, `#`, `%`, `+` or a space: these would change what the query says. The message names the
    /// variable. A key of that kind goes into a file (`indexer-api-key-file`).
    pub fn parse(text: &str) -> Result<Self, Error> {
        let unreadable = RefCell::new(None);
        let dsn = Self::parse_with(text, |name| {
            let value = std::env::var_os(name)?.into_string();
            Some(value.unwrap_or_else(|_| {
                unreadable.replace(Some(name.to_owned()));
                String::new()
            }))
        });
        match unreadable.into_inner() {
            Some(name) => {
                Err(invalid(format_args!("names the variable `{name}`, which is not UTF-8")))
            }
            None => dsn,
        }
    }

    /// Splits `text` after replacing variables by what `lookup` returns; `None` is one that is not set.
    ///
    /// # Errors
    ///
    /// As [`Dsn::parse`].
    pub fn parse_with(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let Some(mut url) = expand(text.trim(), MAX_BYTES, lookup) else {
            return Err(invalid(format_args!("is longer than {MAX_BYTES} bytes")));
        };
        warn_of_unset(&url.variables);
        if url.text.is_empty() {
            url = Expanded::plain("tgm://");
        }
        refuse_control_characters(&url)?;
        let parts = Parts::of(&url)?;
        let query = parts.query.clone();
        query.iter().try_for_each(|query| refuse_syntax_in_variables(&url, query))?;
        parts.warn_of_ignored();
        Ok(Self {
            scheme: given(&url, parts.scheme, |scheme| scheme.to_ascii_lowercase()),
            place: place(&url, parts.place)?,
            parameters: query.map_or(Ok(Vec::new()), |query| parameters(&url, query))?,
        })
    }

    /// Returns the scheme, in lower case.
    pub fn scheme(&self) -> &str {
        self.scheme.text()
    }

    /// Returns the host, an IPv6 address in its brackets; `None` when the URL names none.
    pub fn host(&self) -> Option<&str> {
        self.place.host.as_ref().map(Given::text)
    }

    /// Returns the port, when the URL names one.
    pub fn port(&self) -> Option<u16> {
        self.place.port
    }

    /// Starts to read the parameters; finish with [`Parameters::finish`].
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters::new(self)
    }

    pub(crate) fn given_scheme(&self) -> &Given {
        &self.scheme
    }

    pub(crate) fn given_host(&self) -> Option<&Given> {
        self.place.host.as_ref()
    }

    /// How messages write the port, when the URL names one.
    pub(crate) fn shown_port(&self) -> Option<String> {
        let Place { port, shown_port, .. } = &self.place;
        shown_port.clone().or_else(|| port.map(|port| port.to_string()))
    }

    /// The further servers, unless they are invalid because a user is among them, perhaps with a
    /// password.
    fn also(&self) -> Option<Given> {
        let also = self.find("also").filter(|_| self.scheme() == "tgm")?;
        Some(also.given()).filter(|also| !also.text().contains('@'))
    }

    fn find(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|parameter| parameter.name.text() == name)
    }
}

impl fmt::Debug for Dsn {
    /// Shows scheme, host, port, the further servers of `tgm://`, and the names of the parameters,
    /// without their values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&Given> = self.parameters.iter().map(|parameter| &parameter.name).collect();
        let mut shown = f.debug_struct("Dsn");
        shown
            .field("scheme", &self.scheme)
            .field("host", &self.place.host)
            .field("port", &self.shown_port());
        if let Some(also) = self.also() {
            shown.field("also", &also);
        }
        shown.field("parameters", &names).finish()
    }
}

/// The places of the parts of a URL in its text.
struct Parts {
    scheme: Range<usize>,
    /// The host and the port.
    place: Range<usize>,
    /// Absent when there is no `?`.
    query: Option<Range<usize>>,
    has_user: bool,
    has_path: bool,
    has_fragment: bool,
}

impl Parts {
    /// Finds the parts of `url`. No message shows its text, which may hold a key.
    fn of(url: &Expanded) -> Result<Self, Error> {
        let text = url.text.as_str();
        let is_scheme = |scheme: &str| {
            scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
        };
        let Some(scheme) = text.find(':').filter(|colon| is_scheme(&text[..*colon])) else {
            return Err(invalid("has no scheme; write it like tgm://HOST:PORT or local://"));
        };
        if !text[scheme..].starts_with("://") {
            let scheme = given(url, 0..scheme, str::to_ascii_lowercase);
            return Err(invalid(format_args!("has no // after `{scheme}:`")));
        }
        let start = scheme + "://".len();
        let until = |from: usize, ends: &[char]| {
            text[from..].find(ends).map_or(text.len(), |length| from + length)
        };
        let authority = until(start, &['/', '?', '#']);
        let path = until(authority, &['?', '#']);
        let fragment = until(path, &['#']);
        let user = text[start..authority].rfind('@').map(|at| start + at + 1);
        Ok(Self {
            scheme: 0..scheme,
            place: user.unwrap_or(start)..authority,
            query: (path < fragment).then_some(path + 1..fragment),
            has_user: user.is_some(),
            has_path: !matches!(&text[authority..path], "" | "/"),
            has_fragment: fragment < text.len(),
        })
    }

    fn warn_of_ignored(&self) {
        let user =
            "names a user, which is ignored; a key goes into the parameter `indexer-api-key`";
        let path = "has a path, which is ignored";
        let fragment = "has a fragment, which is ignored; a # inside of a value is written %23";
        let ignored = [(self.has_user, user), (self.has_path, path), (self.has_fragment, fragment)];
        for (_, problem) in ignored.iter().filter(|(is_there, _)| *is_there) {
            tracing::warn!("the session URL {problem}");
        }
    }
}

fn warn_of_unset(variables: &[Variable]) {
    let unset = variables.iter().filter(|variable| !variable.is_set);
    for variable in unset.map(|variable| &variable.written).collect::<BTreeSet<_>>() {
        tracing::warn!("the session URL names {variable}, which is not set and counts as empty");
    }
}

fn refuse_control_characters(url: &Expanded) -> Result<(), Error> {
    let Some(place) = url.text.find(|character: char| character.is_control()) else {
        return Ok(());
    };
    let variable = url.variables.iter().find(|variable| variable.place.contains(&place));
    Err(match variable {
        Some(Variable { written, .. }) => {
            invalid(format_args!("takes in {written}, which holds a line break or the like"))
        }
        None => invalid("holds a line break or the like"),
    })
}

/// Refuses a variable in the query whose value has characters with a meaning there.
fn refuse_syntax_in_variables(url: &Expanded, query: &Range<usize>) -> Result<(), Error> {
    // A value that begins with a # begins at the end of the query.
    let inside = |variable: &&Variable| {
        (query.start..=query.end).contains(&variable.place.start)
            && url.text[variable.place.clone()].contains(SYNTAX)
    };
    let Some(Variable { written, .. }) = url.variables.iter().find(inside) else {
        return Ok(());
    };
    Err(invalid(format_args!(
        "takes a parameter out of {written}, which holds `&`, `#`, `%`, `+` or a space, and these \
         have a meaning of their own there; put a key into a file and name it by \
         `indexer-api-key-file`"
    )))
}

/// Returns a part of a URL, changed by `read`.
fn given(url: &Expanded, part: Range<usize>, read: impl Fn(&str) -> String) -> Given {
    Given::new(read(&url.text[part.clone()]), url.shown(part))
}

/// Reads host and port, and how messages write the port.
fn place(url: &Expanded, place: Range<usize>) -> Result<Place, Error> {
    let text = &url.text[place.clone()];
    // The path and the query were split off before.
    let read =
        Url::parse(&format!("tgm://{text}")).map_err(|error| invalid(error).caused_by(error))?;
    if read.port() == Some(0) {
        return Err(invalid("has port 0"));
    }
    let colon = text.rfind(':').filter(|colon| !text[*colon..].contains(']'));
    let host_end = place.start + colon.unwrap_or(text.len());
    let host = read.host_str().filter(|host| !host.is_empty());
    let host = host.map(|host| Given::new(host, url.shown(place.start..host_end)));
    let shown_port = read.port().and_then(|_| url.shown((host_end + 1).min(place.end)..place.end));
    Ok(Place { host, port: read.port(), shown_port })
}

/// Splits a query. Of two parameters with the same name the first counts.
fn parameters(url: &Expanded, query: Range<usize>) -> Result<Vec<Parameter>, Error> {
    let mut parameters: Vec<Parameter> = Vec::new();
    let mut start = query.start;
    for pair in url.text[query].split('&') {
        let all = start..start + pair.len();
        start = all.end + 1;
        if pair.is_empty() {
            continue;
        }
        let name_end = all.start + pair.find('=').unwrap_or(pair.len());
        let name = all.start..name_end;
        let name = Given::new(decoded(url, name.clone())?, url.shown(name));
        if parameters.iter().any(|parameter| parameter.name.text() == name.text()) {
            tracing::warn!("the session URL gives `{name}` more than once; the first counts");
            continue;
        }
        let value = (name_end + 1).min(all.end)..all.end;
        let shown = url.shown(value.clone());
        parameters.push(Parameter { name, value: Secret::new(decoded(url, value)?), shown });
    }
    Ok(parameters)
}

fn decoded(url: &Expanded, part: Range<usize>) -> Result<String, Error> {
    let text = url.text[part].replace('+', " ");
    let decoded = percent_decode_str(&text).decode_utf8();
    let decoded = decoded.map_err(|_| invalid("holds a parameter that is not UTF-8"))?;
    Ok(decoded.into_owned())
}

/// An error about the URL as a whole.
pub(crate) fn invalid(problem: impl fmt::Display) -> Error {
    Error::invalid(format!("the session URL {problem}"))
}

#[cfg(test)]
mod tests;
