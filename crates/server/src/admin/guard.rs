//! Access control of the admin port: the token, and protection against pages of other sites.
//!
//! A browser sends requests of any page to any address, also to this machine. So that no page on the web
//! acts as the operator, requests whose `Sec-Fetch-Site` or `Origin` names another site are refused. A
//! port without a token also refuses host names that an attacker could resolve to this machine
//! (DNS rebinding): it answers only to addresses and to `localhost`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::api::edge::Failure;
use crate::config::TokenInForce;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// The security headers of every answer.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
             require-trusted-types-for 'script'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// Decides which requests are answered.
#[derive(Debug)]
pub(super) struct Guard {
    token: Option<Arc<TokenInForce>>,
    /// Where the port listens.
    address: SocketAddr,
}

impl Guard {
    pub(super) fn new(token: Option<Arc<TokenInForce>>, address: SocketAddr) -> Arc<Self> {
        Arc::new(Self { token, address })
    }

    pub(super) fn needs_token(&self) -> bool {
        self.token.is_some()
    }

    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let shown = shown
            .and_then(|value| value.split_at_checked(7))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        shown.is_some_and(|(_, shown)| token.matches(shown))
    }

    /// Returns why the request is refused, if it is.
    fn refusal(&self, request: &Request) -> Option<String> {
        let headers = request.headers();
        let host = match host(request) {
            Ok(host) => host,
            Err(problem) => return Some(problem.to_owned()),
        };
        if self.token.is_none() && !host.as_ref().is_some_and(|host| self.is_this_machine(host)) {
            let problem = "without a token this port answers only to the address it listens on \
                           and to names of this machine's loopback, such as localhost";
            return Some(problem.to_owned());
        }
        let site = headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
        let follows_link = request.uri().path() == "/"
            && matches!(*request.method(), Method::GET | Method::HEAD)
            && headers.get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate");
        if !matches!(site, None | Some(b"same-origin" | b"none")) && !follows_link {
            return Some("this port answers no page of another site".to_owned());
        }
        let is_own = |origin: &HeaderValue| {
            origin
                .to_str()
                .is_ok_and(|origin| host.as_ref().is_some_and(|host| is_origin_of(origin, host)))
        };
        if !headers.get_all(ORIGIN).iter().all(is_own) {
            return Some("this port answers no page of another origin".to_owned());
        }
        None
    }

    /// Whether `host` is an address of this machine, or a name that always means it.
    fn is_this_machine(&self, host: &Authority) -> bool {
        let name = host.host();
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        match address.unwrap_or(name).parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                address.is_loopback() || address == self.address.ip().to_canonical()
            }
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        }
    }
}

/// The host that the request names. A request that names two hosts is invalid.
fn host(request: &Request) -> Result<Option<Authority>, &'static str> {
    const INVALID: &str = "the host of the request is invalid";
    let mut hosts = request.headers().get_all(HOST).iter();
    let (named, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err("the request names two hosts");
    }
    let named = match (request.uri().authority(), named) {
        (Some(authority), _) => authority.clone(),
        (None, Some(named)) => Authority::try_from(named.as_bytes()).map_err(|_| INVALID)?,
        (None, None) => return Ok(None),
    };
    // User information before an @ is not allowed.
    if named.as_str().contains('@') { Err(INVALID) } else { Ok(Some(named)) }
}

/// Whether `origin` is the origin of the pages of `host`.
fn is_origin_of(origin: &str, host: &Authority) -> bool {
    let (rest, default_port) = match origin.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (rest, 80),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (rest, 443),
        _ => return false,
    };
    rest.parse::<Authority>().is_ok_and(|origin| {
        origin.host().eq_ignore_ascii_case(host.host())
            && origin.port_u16().unwrap_or(default_port) == host.port_u16().unwrap_or(default_port)
    })
}

/// Refuses requests without the token, if the port has one.
pub(super) async fn require_token(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    if guard.is_authorized(request.headers()) {
        return next.run(request).await;
    }
    let problem = "the admin token is needed, as authorization: Bearer";
    let challenge = HeaderValue::from_static("Bearer realm=\"tgm-session\"");
    ([(WWW_AUTHENTICATE, challenge)], Failure::new(StatusCode::UNAUTHORIZED, problem))
        .into_response()
}

/// Refuses requests of pages of other sites.
pub(super) async fn refuse_other_sites(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    match guard.refusal(&request) {
        None => next.run(request).await,
        Some(problem) => Failure::new(StatusCode::FORBIDDEN, problem).into_response(),
    }
}

/// Adds the security headers to the answer.
pub(super) async fn add_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    const NO_TOKEN: Option<&str> = None;

    fn guard(token: Option<&str>) -> Arc<Guard> {
        let token = token.map(|token| Arc::new(TokenInForce::given(token)));
        Guard::new(token, "192.0.2.7:9011".parse().unwrap())
    }

    fn asks(guard: &Guard, path: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        guard.refusal(&request.body(Body::empty()).unwrap()).is_none()
    }

    #[test]
    fn without_a_token_only_names_of_this_machine_are_answered_to() {
        let open = guard(NO_TOKEN);
        for host in [
            "localhost",
            "LOCALHOST:9011",
            "127.0.0.1:9011",
            "127.8.9.1",
            "[::1]:9011",
            "[::ffff:127.0.0.1]",
            "192.0.2.7:9011",
            "192.0.2.7",
        ] {
            assert!(asks(&open, "/api/overview", &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9011",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "192.0.2.8:9011",
            "[::2]:9011",
            "",
            "a b",
        ] {
            assert!(!asks(&open, "/api/overview", &[("host", host)]), "{host}");
        }
        assert!(!asks(&open, "/api/overview", &[]), "no host at all");
        assert!(!asks(&open, "/api/overview", &[("host", "localhost"), ("host", "evil.example")]));
        assert!(!asks(&open, "http://evil.example/api/overview", &[("host", "localhost")]));
        // With a token any host name is accepted.
        assert!(asks(&guard(Some("sesame")), "/api/overview", &[("host", "admin.example")]));
    }

    #[test]
    fn a_page_of_another_site_is_refused_whatever_it_asks_for() {
        for guard in [guard(NO_TOKEN), guard(Some("sesame"))] {
            let with = |path, header: &[(&str, &str)]| {
                asks(&guard, path, &[&[("host", "localhost:9011")], header].concat())
            };
            for (site, admitted) in
                [("same-origin", true), ("none", true), ("same-site", false), ("cross-site", false)]
            {
                let header = [("sec-fetch-site", site)];
                assert_eq!(with("/api/overview", &header), admitted, "{site}");
                assert_eq!(with("/", &header), admitted, "{site}");
                // A link on another site may lead to the page, and to no other path.
                let link = [("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
                assert!(with("/", &link), "{site}");
                assert_eq!(with("/api/overview", &link), admitted, "{site}");
            }
            for (origin, admitted) in [
                ("http://localhost:9011", true),
                ("http://LOCALHOST:9011", true),
                ("https://localhost:9011", true),
                ("http://localhost:3000", false),
                ("http://localhost", false),
                ("http://127.0.0.1:9011", false),
                ("http://evil.example", false),
                ("null", false),
                ("", false),
            ] {
                assert_eq!(with("/api/overview", &[("origin", origin)]), admitted, "{origin}");
            }
        }
        let guard = guard(Some("sesame"));
        let behind_proxy =
            |host| asks(&guard, "/", &[("host", host), ("origin", "https://admin.example")]);
        assert!(behind_proxy("admin.example") && behind_proxy("admin.example:443"));
        assert!(!behind_proxy("admin.example:80"));
    }

    #[test]
    fn a_token_is_shown_as_a_bearer_and_its_scheme_in_any_case() {
        let guard = guard(Some("sesame"));
        let knows = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            guard.is_authorized(&[(AUTHORIZATION, value)].into_iter().collect())
        };
        assert!(knows("Bearer sesame") && knows("bearer sesame"));
        for wrong in ["Bearer Sesame", "Bearer sesame ", "Bearer ", "Basic sesame", "sesame", ""] {
            assert!(!knows(wrong), "{wrong:?}");
        }
        assert!(!guard.is_authorized(&HeaderMap::new()));
    }
}
