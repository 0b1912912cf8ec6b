//! The origins of web pages that may call the gRPC port.

use std::fmt;
use std::str::FromStr;

use http::HeaderValue;
use http::uri::Uri;

/// The origin of web pages, as browsers send it: `https://app.example.com` or `http://localhost:8080`.
///
/// ```
/// use tgm_session_server::Origin;
///
/// assert!("https://app.example.com".parse::<Origin>().is_ok());
/// assert!("https://app.example.com/".parse::<Origin>().is_err());
/// assert!("*".parse::<Origin>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl Origin {
    /// The origin as the header `origin` has it.
    pub fn header(&self) -> &HeaderValue {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "write an origin as browsers send it: a scheme, a host, and a port that is \
                             not the default, in lower case, like https://app.example.com";
        let (scheme, authority) = text.split_once("://").ok_or(SHAPE)?;
        let uri = text.parse::<Uri>().map_err(|_| SHAPE)?;
        let is_whole = uri.authority().is_some_and(|parsed| parsed.as_str() == authority);
        let is_lower_case = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        // Browsers never send the default port, so an origin with it would match nothing.
        let has_default_port = match scheme {
            "https" => authority.ends_with(":443"),
            "http" => authority.ends_with(":80"),
            _ => return Err(SHAPE),
        };
        if !is_whole || !is_lower_case || has_default_port || authority.contains('@') {
            return Err(SHAPE);
        }
        HeaderValue::from_str(text).map(Self).map_err(|_| SHAPE)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The value was parsed from text.
        f.write_str(self.0.to_str().map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_would_send_and_nothing_else() {
        for sound in ["https://a.example", "http://localhost:8080", "http://[::1]:3000"] {
            let origin: Origin = sound.parse().unwrap();
            assert_eq!(
                (origin.to_string(), origin.header().as_bytes()),
                (sound.into(), sound.as_bytes())
            );
        }
        for wrong in [
            "",
            "*",
            "null",
            "a.example",
            "https://",
            "https://a.example/",
            "https://a.example/x",
            "https://A.example",
            "https://a.example:443",
            "http://a.example:80",
            "ftp://a.example",
            "https://me@a.example",
            "https://a.example?x",
            "https://a example",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong:?}");
        }
    }
}
