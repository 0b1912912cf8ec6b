//! Session URLs: one parser for `tgm://`, `local://` and every scheme an application adds.

use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::duration::parse_duration;
use crate::error::Error;
use crate::expand::expand;

/// The longest session URL, in bytes, before and after its variables are replaced.
const MAX_BYTES: usize = 16 * 1024;

/// A session URL, split into its parts.
///
/// `$VAR` and `${VAR}` are replaced by the environment first, as Go's `os.ExpandEnv` does. The
/// empty text means `tgm://`. Parameter values may be secrets: `Debug` and errors never show the
/// URL or the value of a parameter that is read with [`Parameters::secret`].
///
/// ```
/// let dsn = tgm_session::Dsn::parse("tgm://sessions.example:9010?plaintext=true")?;
/// assert_eq!((dsn.scheme(), dsn.host(), dsn.port()), ("tgm", Some("sessions.example"), Some(9010)));
/// # Ok::<(), tgm_session::Error>(())
/// ```
#[derive(Clone)]
pub struct Dsn {
    scheme: String,
    host: Option<String>,
    port: Option<u16>,
    parameters: Vec<(String, SecretString)>,
}

impl Dsn {
    /// Splits `text` after replacing variables from the environment of the process.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it is not a URL, or has parts that mean nothing here: a
    /// user, a path, a fragment, a parameter given twice.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::parse_with(text, |name| {
            std::env::var_os(name).unwrap_or_default().to_string_lossy().into_owned()
        })
    }

    /// Splits `text` after replacing variables by what `lookup` says; an unknown one is empty.
    ///
    /// # Errors
    ///
    /// As [`Dsn::parse`].
    pub fn parse_with(text: &str, lookup: impl Fn(&str) -> String) -> Result<Self, Error> {
        let text =
            Some(text).filter(|text| text.len() <= MAX_BYTES).map(|text| expand(text, lookup));
        let Some(text) = text.filter(|text| text.len() <= MAX_BYTES) else {
            return Err(invalid(format_args!("is longer than {MAX_BYTES} bytes")));
        };
        let text = if text.is_empty() { "tgm://" } else { &text };
        // The text itself stays out of every message: it may carry a key.
        let url = Url::parse(text).map_err(|error| match error {
            url::ParseError::RelativeUrlWithoutBase => {
                invalid("has no scheme; write it like tgm://HOST:PORT or local://")
            }
            error => invalid(error),
        })?;
        if url.cannot_be_a_base() || !text[url.scheme().len()..].starts_with("://") {
            return Err(invalid(format_args!("has no // after `{}:`", url.scheme())));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid("names a user; a key goes into the parameter `indexer-api-key`"));
        }
        if !matches!(url.path(), "" | "/") {
            return Err(invalid("has a path, and a path means nothing here"));
        }
        if url.fragment().is_some() {
            return Err(invalid("has a fragment; a # inside of a value is written %23"));
        }
        if url.port() == Some(0) {
            return Err(invalid("has port 0"));
        }
        let mut parameters: Vec<(String, SecretString)> = Vec::new();
        for (name, value) in url.query_pairs() {
            if parameters.iter().any(|(known, _)| *known == name) {
                return Err(invalid(format_args!("gives the parameter `{name}` twice")));
            }
            parameters.push((name.into_owned(), value.into_owned().into()));
        }
        Ok(Self {
            scheme: url.scheme().to_owned(),
            host: url.host_str().filter(|host| !host.is_empty()).map(str::to_owned),
            port: url.port(),
            parameters,
        })
    }

    /// Returns the scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns the host, an IPv6 address in its brackets; `None` when the URL names none.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Returns the port, when the URL names one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Starts to read the parameters; finish with [`Parameters::finish`].
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters { dsn: self, known: Vec::new() }
    }
}

impl fmt::Debug for Dsn {
    /// Shows where the URL leads and the names of its parameters, without their values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.parameters.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Dsn")
            .field("scheme", &self.scheme)
            .field("host", &self.host)
            .field("port", &self.port)
            .field("parameters", &names)
            .finish()
    }
}

/// The parameters of a session URL, read one by one and by type.
///
/// Every name that is asked for becomes known; [`Parameters::finish`] refuses the rest, so that a
/// misspelled parameter never goes unnoticed.
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
}

impl<'a> Parameters<'a> {
    /// Returns the value of `name` as it stands.
    pub fn text(&mut self, name: &'static str) -> Option<&'a str> {
        self.get(name).map(|value| value.expose_secret())
    }

    /// Returns the value of `name`, which never shows up in `Debug` or in an error.
    pub fn secret(&mut self, name: &'static str) -> Option<SecretString> {
        self.get(name).cloned()
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
        self.text(name)
            .map(|value| parse_duration(value).map_err(|error| wrong(name, value, error)))
            .transpose()
    }

    /// Returns the number that any of `names` gives: the name of today first, then old ones.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] when it is not a whole number from 0 up, or when two of the
    /// names are given.
    pub fn count(&mut self, names: &[&'static str]) -> Result<Option<u64>, Error> {
        let mut found: Option<(&'static str, u64)> = None;
        for name in names {
            let Some(value) = self.text(name) else { continue };
            let count = value.parse().map_err(|_| wrong(name, value, "is not a whole number"))?;
            if let Some((other, _)) = found.replace((name, count)) {
                return Err(invalid(format_args!("gives `{other}` and its old name `{name}`")));
            }
        }
        Ok(found.map(|(_, count)| count))
    }

    /// Refuses every parameter that nobody asked for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] names the first one and the nearest known one.
    pub fn finish(self) -> Result<(), Error> {
        let unknown = |(name, _): &&(String, SecretString)| !self.known.contains(&name.as_str());
        let Some((name, _)) = self.dsn.parameters.iter().find(unknown) else { return Ok(()) };
        let scheme = &self.dsn.scheme;
        let near = |known: &&&str| strsim::osa_distance(known, name);
        Err(match self.known.iter().min_by_key(near) {
            Some(known) => invalid(format_args!(
                "gives the parameter `{name}`, which {scheme}:// does not know; the nearest is `{known}`"
            )),
            None => invalid(format_args!(
                "gives the parameter `{name}`, but {scheme}:// knows no parameters"
            )),
        })
    }

    fn get(&mut self, name: &'static str) -> Option<&'a SecretString> {
        self.known.push(name);
        self.dsn.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

/// An error about the URL as a whole.
pub(crate) fn invalid(problem: impl fmt::Display) -> Error {
    Error::invalid(format!("the session URL {problem}"))
}

/// An error about the value of one parameter.
pub(crate) fn wrong(name: &str, value: &str, problem: impl fmt::Display) -> Error {
    invalid(format_args!("gives `{name}={value}`: `{value}` {problem}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Dsn, Error> {
        Dsn::parse_with(text, |name| match name {
            "HOST" => "sessions.example".into(),
            "KEY" => "s3cret".into(),
            _ => String::new(),
        })
    }

    fn place(text: &str) -> (String, Option<String>, Option<u16>) {
        let dsn = parse(text).unwrap();
        (dsn.scheme, dsn.host, dsn.port)
    }

    fn message(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn hosts_ports_and_addresses_are_told_apart() {
        let at = |host: &str, port| ("tgm".to_owned(), Some(host.to_owned()), port);
        assert_eq!(place(""), ("tgm".into(), None, None));
        assert_eq!(place("tgm://"), ("tgm".into(), None, None));
        assert_eq!(place("tgm://?plaintext=true"), ("tgm".into(), None, None));
        assert_eq!(place("local://"), ("local".into(), None, None));
        assert_eq!(place("tgm://h"), at("h", None));
        assert_eq!(place("tgm://h/"), at("h", None));
        assert_eq!(place("TGM://h:8080"), at("h", Some(8080)));
        assert_eq!(place("tgm://h:443"), at("h", Some(443)));
        assert_eq!(place("tgm://127.0.0.1:9010"), at("127.0.0.1", Some(9010)));
        assert_eq!(place("tgm://[::1]:9010"), at("[::1]", Some(9010)));
        assert_eq!(place("tgm://[2001:db8::7]"), at("[2001:db8::7]", None));
        assert_eq!(place("tgm://$HOST:9010"), at("sessions.example", Some(9010)));
        assert_eq!(place("tgm://${HOST}"), at("sessions.example", None));
        assert_eq!(place("tgm://$UNSET"), ("tgm".into(), None, None));
    }

    #[test]
    fn parts_that_mean_nothing_are_refused_and_named() {
        assert!(message("sessions.example").contains("has no scheme"));
        assert!(message("tgm:h").contains("has no // after `tgm:`"));
        assert!(message("tgm:/h").contains("has no // after `tgm:`"));
        assert!(message("tgm://me@h").contains("names a user"));
        assert!(message("tgm://:pw@h").contains("names a user"));
        assert!(message("tgm://h/pool").contains("has a path"));
        assert!(message("tgm://h#x").contains("has a fragment"));
        assert!(message("tgm://h:0").contains("has port 0"));
        assert!(message("tgm://h:70000").contains("invalid port"));
        assert!(message("tgm://:9010").contains("empty host"));
        assert!(message("tgm://[::1").contains("IPv6"));
        assert!(message("tgm://h?a=1&a=2").contains("`a` twice"));
        assert!(message(&format!("tgm://h?a={}", "x".repeat(MAX_BYTES))).contains("longer than"));
    }

    #[test]
    fn a_variable_that_holds_a_huge_value_is_refused() {
        let error = Dsn::parse_with("tgm://$A$A$A", |_| "x".repeat(MAX_BYTES / 2)).unwrap_err();
        assert!(error.to_string().contains("longer than"));
    }

    #[test]
    fn an_unknown_parameter_is_named_beside_the_nearest_known_one() {
        let dsn = parse("tgm://h?plain-text=true").unwrap();
        let mut parameters = dsn.parameters();
        assert!(!parameters.flag("plaintext"));
        assert!(!parameters.flag("insecure"));
        let message = parameters.finish().unwrap_err().to_string();
        assert!(message.contains("`plain-text`") && message.contains("nearest is `plaintext`"));
    }

    #[test]
    fn values_are_read_by_type_and_named_when_wrong() {
        let dsn = parse("x://?on=true&ON=TRUE&t=1m30s&n=7&bad=x&old=1&new=2").unwrap();
        let mut parameters = dsn.parameters();
        assert!(parameters.flag("on") && !parameters.flag("ON") && !parameters.flag("off"));
        assert_eq!(parameters.duration("t"), Ok(Some(Duration::from_secs(90))));
        assert_eq!(parameters.count(&["n", "m"]), Ok(Some(7)));
        assert_eq!(parameters.count(&["absent"]), Ok(None));
        let message = |error: Error| error.to_string();
        assert!(message(parameters.count(&["bad"]).unwrap_err()).contains("`bad=x`"));
        assert!(message(parameters.duration("bad").unwrap_err()).contains("`x` is not a duration"));
        assert!(message(parameters.count(&["new", "old"]).unwrap_err()).contains("old name `old`"));
    }

    #[test]
    fn a_secret_shows_up_neither_in_debug_nor_in_errors() {
        let dsn = parse("tgm://h?indexer-api-key=$KEY&typo=$KEY").unwrap();
        let mut parameters = dsn.parameters();
        let secret = parameters.secret("indexer-api-key").unwrap();
        assert_eq!(secret.expose_secret(), "s3cret");
        assert!(!format!("{dsn:?} {parameters:?} {secret:?}").contains("s3cret"));
        assert!(!parameters.finish().unwrap_err().to_string().contains("s3cret"));
        for broken in ["$KEY", "tgm://h/$KEY", "tgm://h#$KEY", "tgm://$KEY@h", "tgm://h:$KEY"] {
            assert!(!message(broken).contains("s3cret"), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            let _ = Dsn::parse(&text);
        }

        #[test]
        fn nothing_like_a_url_makes_the_parser_panic(
            text in "(tgm|local|x)?:?/{0,2}[a-z$@:.\\[\\]{}%é0-9-]{0,12}(/|\\?[a-z=&$%+#é-]{0,20})?"
        ) {
            if let Ok(dsn) = Dsn::parse(&text) {
                let mut parameters = dsn.parameters();
                let _ = (parameters.flag("a"), parameters.duration("b"), parameters.count(&["c"]));
                let _ = parameters.finish();
            }
        }
    }
}
