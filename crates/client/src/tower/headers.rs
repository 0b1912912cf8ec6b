//! The caller of a request, from trusted headers.

use http::HeaderMap;

use crate::error::Error;
use crate::request::{Id, SessionRequest};

impl SessionRequest {
    /// Asks for a session of `service` for the organization in the headers of a request.
    ///
    /// | header | |
    /// | --- | --- |
    /// | `x-organization-id`, or else `x-user-id` | the organization |
    /// | `x-api-key-id` | the id of the API key; may be absent |
    /// | `x-trace-id` | the trace id; without it the session gets a random one |
    ///
    /// An organization is required. A service without authentication chooses it in a closure of its
    /// own; an empty name is the `default_organization` of the server.
    ///
    /// The headers are trusted: only the authentication in front of the service may set them.
    ///
    /// `traceparent` is not read. Callers choose it, and one distributed trace may open many streams.
    /// These would share one limit of workers, and their workers would not end with their session. So
    /// every session has a trace id of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Unauthenticated`] when no header names an organization, and
    /// [`Error::InvalidArgument`] when one is given twice or is not UTF-8.
    pub fn from_headers(service: impl Into<Id>, headers: &HeaderMap) -> Result<Self, Error> {
        let organization = match only(headers, "x-organization-id")? {
            Some(organization) => organization,
            None => only(headers, "x-user-id")?.ok_or_else(|| Error::Unauthenticated {
                message: "neither `x-organization-id` nor `x-user-id` names an organization".into(),
            })?,
        };
        let api_key = only(headers, "x-api-key-id")?.unwrap_or_default();
        let trace = only(headers, "x-trace-id")?.unwrap_or_default();
        Ok(Self::new(service, organization).api_key(api_key).trace(trace))
    }
}

/// Returns the value of a header, if it has one that is not empty.
///
/// A second value may come from the caller, so that neither can be trusted.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Error> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Error::invalid(format!("header `{name}` is given more than once")));
    }
    let value = std::str::from_utf8(value.as_bytes())
        .map_err(|_| Error::invalid(format!("header `{name}` is not UTF-8")))?;
    Ok(Some(value).filter(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn read(headers: &[(&'static str, &'static str)]) -> Result<SessionRequest, Error> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            map.append(HeaderName::from_static(name), value);
        }
        SessionRequest::from_headers("t1r", &map)
    }

    #[test]
    fn the_headers_name_organization_key_and_trace() {
        let request = read(&[
            ("x-user-id", "old name"),
            ("x-organization-id", "zoë"),
            ("x-api-key-id", "key-1"),
            ("x-trace-id", "4bf92f35"),
        ])
        .unwrap();
        assert_eq!((&*request.service, &*request.organization), ("t1r", "zoë"));
        assert_eq!((&*request.api_key, &*request.trace), ("key-1", "4bf92f35"));
    }

    #[test]
    fn the_old_name_of_the_organization_counts_when_the_new_one_is_absent_or_empty() {
        let request = read(&[("x-user-id", "acme"), ("x-organization-id", "")]).unwrap();
        assert_eq!((&*request.organization, &*request.api_key), ("acme", ""));
    }

    #[test]
    fn a_request_without_an_organization_is_unauthenticated() {
        for headers in [&[][..], &[("x-organization-id", "")], &[("x-api-key-id", "key-1")]] {
            assert!(matches!(read(headers), Err(Error::Unauthenticated { .. })), "{headers:?}");
        }
    }

    #[test]
    fn the_trace_that_callers_set_is_not_read() {
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let request = read(&[("x-organization-id", "acme"), ("traceparent", traceparent)]);
        assert_eq!(&*request.unwrap().trace, "");
    }

    #[test]
    fn a_header_that_is_given_twice_is_refused() {
        for name in ["x-organization-id", "x-user-id", "x-api-key-id", "x-trace-id"] {
            let mut headers = vec![(name, "one"), (name, "two")];
            if name.starts_with("x-api") || name.starts_with("x-trace") {
                headers.push(("x-organization-id", "acme"));
            }
            let error = read(&headers).unwrap_err();
            assert!(matches!(&error, Error::InvalidArgument { .. }), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_header_that_is_no_text_is_refused() {
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static("x-organization-id"),
            HeaderValue::from_bytes(b"\xff\xfe").unwrap(),
        )]);
        let error = SessionRequest::from_headers("t1r", &headers).unwrap_err();
        assert!(error.to_string().contains("x-organization-id"), "{error}");
    }
}
