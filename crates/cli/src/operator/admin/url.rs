//! The URL of an admin API.

use std::fmt;

use connect::{Host, Protocol, TlsFiles, Verify, Way};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

use crate::failure::Failure;

/// The characters of a path that are not escaped. A dot is, because `..` would lead to another path.
const UNESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// The base URL of an admin API: scheme, host, port, and the path of a proxy in front of it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AdminUrl {
    text: String,
    host: String,
    port: u16,
    tls: bool,
}

impl AdminUrl {
    /// Reads a URL such as `http://127.0.0.1:9011`.
    ///
    /// # Errors
    ///
    /// What is wrong and what would be right; never the user information of the URL.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{why}; write a URL like http://127.0.0.1:9011");
        let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong("the admin port speaks http")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a user or a password is not allowed, the token has its own flag"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("parameters are not allowed"));
        }
        Ok(Self {
            text: url.as_str().trim_end_matches('/').to_owned(),
            host: url.host_str().ok_or_else(|| wrong("there is no host in it"))?.to_owned(),
            port: url.port_or_known_default().ok_or_else(|| wrong("there is no port in it"))?,
            tls,
        })
    }

    /// The URL as text, without a slash at its end.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is called over TLS.
    pub(crate) const fn is_tls(&self) -> bool {
        self.tls
    }

    /// The way to the server. Over TLS its certificate is verified with the roots of this machine.
    pub(super) fn way(&self) -> Result<Way, Failure> {
        let way = Way::new(Host::new(&self.host, self.port), [], Protocol::Http1);
        if !self.tls {
            return Ok(way);
        }
        let files = TlsFiles { verify: Verify::System, identity: None };
        way.with_tls(files).map_err(|error| {
            Failure::Failed(format!("{self}: {error}; SSL_CERT_FILE can name root certificates"))
        })
    }

    /// The URL of one call; every segment of its path may hold any text.
    pub(super) fn call(&self, path: &[&str], query: &str) -> String {
        let mut call = format!("{}/api", self.text);
        for segment in path {
            call.push('/');
            call.extend(utf8_percent_encode(segment, UNESCAPED));
        }
        if !query.is_empty() {
            call.push('?');
            call.push_str(query);
        }
        call
    }
}

impl fmt::Debug for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_its_port_and_the_path_of_a_proxy() {
        for (text, base, tls) in [
            ("http://127.0.0.1:9011", "http://127.0.0.1:9011", false),
            ("http://[::1]:9011/", "http://[::1]:9011", false),
            ("https://ops.example/sessions/", "https://ops.example/sessions", true),
        ] {
            let url = AdminUrl::parse(text).expect(text);
            assert_eq!((url.as_str(), url.is_tls()), (base, tls));
        }
    }

    #[test]
    fn an_invalid_admin_url_is_refused_and_its_secrets_are_not_shown() {
        for text in
            ["127.0.0.1:9011", "tgm://h", "ftp://h", "http://u:s3cret@h", "http://h?token=s3cret"]
        {
            let problem = AdminUrl::parse(text).expect_err(text);
            assert!(problem.contains("http://127.0.0.1:9011"), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
    }

    #[test]
    fn any_text_is_one_segment_of_a_path() {
        let url = AdminUrl::parse("http://h:1").expect("a URL");
        assert_eq!(
            url.call(&["organizations", "a/../b c?é", "disabled"], "note=x"),
            "http://h:1/api/organizations/a%2F%2E%2E%2Fb%20c%3F%C3%A9/disabled?note=x"
        );
        assert_eq!(url.call(&["organizations", ".."], ""), "http://h:1/api/organizations/%2E%2E");
    }
}
