//! The admin API of a server, as a client sees it.

mod calls;
mod url;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tgm_session_server::api::Problem;
use ureq::http::header::AUTHORIZATION;
use ureq::http::{HeaderValue, Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, RequestExt as _};

pub(crate) use self::calls::{OfWhom, Subject};
pub(crate) use self::url::AdminUrl;
use crate::failure::Failure;

/// The most an answer may measure: many times what the longest page of the longest ids does.
const MOST_BYTES: u64 = 32 * 1024 * 1024;

/// Where the admin API is, and what opens it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct AdminArgs {
    /// The admin port of the server: http://HOST:PORT, or https:// through a proxy that ends TLS.
    #[arg(
        long,
        value_name = "URL",
        env = "TGM_SESSION_ADMIN_URL",
        hide_env_values = true,
        default_value = "http://127.0.0.1:9011"
    )]
    // Looked at later: clap would show the password of a URL that must not have one.
    admin: SecretString,

    /// The bearer token of the admin port, where it has one; better given by its variable, for
    /// others can read a command line [default: none].
    #[arg(
        long,
        value_name = "TOKEN",
        env = "TGM_SESSION_ADMIN_TOKEN",
        hide_env_values = true,
        value_parser = token
    )]
    admin_token: Option<SecretString>,

    /// How long to wait for each answer, like 500ms or 10s.
    #[arg(
        long,
        value_name = "DURATION",
        env = "TGM_SESSION_ADMIN_TIMEOUT",
        hide_env_values = true,
        default_value = "10s",
        value_parser = timeout
    )]
    admin_timeout: Duration,
}

fn token(text: &str) -> Result<SecretString, String> {
    // Anything more would have the refused value, a secret, in clap's message.
    if text.is_empty() { Err("an empty token opens nothing".into()) } else { Ok(text.into()) }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = tgm_session::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() { Err("no answer comes in no time".into()) } else { Ok(timeout) }
}

/// Why a call brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server says that there is no such thing.
    NotFound(String),
    /// The server says that this cannot be done as things are.
    Conflict(String),
    /// Anything else.
    Failure(Failure),
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NotFound(problem) | Fault::Conflict(problem) => Self::Failed(problem),
            Fault::Failure(failure) => failure,
        }
    }
}

/// A client of one server's admin API. Calls block their thread; clones share connections.
#[derive(Clone)]
pub(crate) struct Admin {
    agent: Agent,
    url: AdminUrl,
    authorization: Option<HeaderValue>,
    timeout: Duration,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Admin {
    /// Makes a client. Nothing is sent yet.
    ///
    /// It goes straight to the server, through no proxy of the environment, and follows no
    /// redirect: the token is for that server alone.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] when the URL is none, or no header can carry the token; [`Failure::Failed`] when an `https://`
    /// server is to be called and this machine has no root certificates.
    pub(crate) fn new(args: &AdminArgs) -> Result<Self, Failure> {
        let url = AdminUrl::parse(args.admin.expose_secret())
            .map_err(|problem| Failure::Usage(format!("--admin: {problem}")))?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_global(Some(args.admin_timeout))
            .user_agent(concat!("tgm-session/", env!("CARGO_PKG_VERSION")))
            .accept("application/json");
        if url.is_tls() {
            config = config.tls_config(tls()?);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            url,
            authorization: args.admin_token.as_ref().map(authorization).transpose()?,
            timeout: args.admin_timeout,
        })
    }

    /// Where it is, as text.
    pub(crate) fn place(&self) -> &str {
        self.url.as_str()
    }

    fn get<T: DeserializeOwned>(&self, path: &[&str], query: &impl Serialize) -> Result<T, Fault> {
        self.call(Method::GET, path, query, ())
    }

    fn put<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Fault> {
        let body = serde_json::to_string(body)
            .map_err(|error| Failure::Failed(format!("cannot write the request: {error}")))?;
        self.call(Method::PUT, path, &(), body)
    }

    fn post<T: DeserializeOwned>(&self, path: &[&str]) -> Result<T, Fault> {
        self.call(Method::POST, path, &(), ())
    }

    fn delete<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &impl Serialize,
    ) -> Result<T, Fault> {
        self.call(Method::DELETE, path, query, ())
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &impl Serialize,
        body: impl ureq::AsSendBody,
    ) -> Result<T, Fault> {
        let changes = method != Method::GET;
        let query = serde_urlencoded::to_string(query)
            .map_err(|error| Failure::Failed(format!("cannot write the request: {error}")))?;
        let mut request = Request::builder().method(&method).uri(self.url.call(path, &query));
        if method == Method::PUT {
            request = request.header("content-type", "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(body)
            .map_err(|error| Failure::Usage(format!("this cannot be asked for: {error}")))?;
        let request = request.with_agent(&self.agent).configure().allow_non_standard_methods(true);
        let answer = request.build().run().map_err(|error| self.unanswered(&error, changes))?;
        self.read(answer, changes)
    }

    /// Takes what the server said.
    fn read<T: DeserializeOwned>(
        &self,
        mut answer: Response<Body>,
        changes: bool,
    ) -> Result<T, Fault> {
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(MOST_BYTES).read_to_vec();
        let body = body.map_err(|error| self.unanswered(&error, changes))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                let place = self.place();
                let problem = format!("{place} answered what this version cannot read: {error}");
                Failure::Failed(problem + "; " + PORT).into()
            });
        }
        let problem = serde_json::from_slice(&body).ok().map(|Problem { error }| error);
        Err(self.refused(status, problem))
    }

    /// Words an answer that says no.
    fn refused(&self, status: StatusCode, problem: Option<String>) -> Fault {
        let place = self.place();
        let failure = match (status, problem) {
            (StatusCode::NOT_FOUND, Some(problem)) => return Fault::NotFound(problem),
            (StatusCode::CONFLICT, Some(problem)) => return Fault::Conflict(problem),
            (StatusCode::UNAUTHORIZED, _) => Failure::Refused(match self.authorization {
                Some(_) => format!("{place} does not take this admin token"),
                None => format!(
                    "{place} wants its admin token: set TGM_SESSION_ADMIN_TOKEN, or give \
                     --admin-token"
                ),
            }),
            (StatusCode::FORBIDDEN, problem) => Failure::Refused(match problem {
                Some(problem) => format!("{place}: {problem}"),
                None => format!("{place} forbids this call"),
            }),
            (StatusCode::SERVICE_UNAVAILABLE, problem) => Failure::Unavailable(match problem {
                Some(problem) => format!("{place}: {problem}"),
                None => format!("{place} cannot serve now"),
            }),
            (StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT, _) => {
                Failure::Unavailable(format!("the proxy at {place} cannot reach the server"))
            }
            (status, Some(problem)) if status.is_client_error() => Failure::Usage(problem),
            (status, Some(problem)) => Failure::Failed(format!("{place}: {problem} ({status})")),
            (status, None) => Failure::Failed(format!("{place} answered {status}; {PORT}")),
        };
        failure.into()
    }

    /// Words a call that no answer came to, and what that means when it was to change something.
    fn unanswered(&self, error: &ureq::Error, changes: bool) -> Failure {
        let place = self.place();
        let unknown = if changes { "; whether it was done is not known" } else { "" };
        let problem = match error {
            ureq::Error::Timeout(_) => {
                format!("{place} gave no answer in {:?}{unknown}", self.timeout)
            }
            ureq::Error::HostNotFound => {
                return Failure::Unavailable(format!("{place}: there is no host of this name"));
            }
            ureq::Error::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Failure::Unavailable(format!(
                    "nobody listens at {place}: start the server, or say with --admin where its \
                     admin port is"
                ));
            }
            ureq::Error::Io(error) => format!("{place}: {error}{unknown}"),
            ureq::Error::Rustls(error) => return Failure::Unavailable(format!("{place}: {error}")),
            ureq::Error::BodyExceedsLimit(_) => {
                let problem = format!("{place} answered with more than {MOST_BYTES} bytes");
                return Failure::Failed(problem + "; " + PORT);
            }
            error => return Failure::Failed(format!("{place}: {error}{unknown}; {PORT}")),
        };
        Failure::Unavailable(problem)
    }
}

/// What to look at when an answer makes no sense.
const PORT: &str = "is that the admin port (9011 by default) of a tgm-session server?";

fn authorization(token: &SecretString) -> Result<HeaderValue, Failure> {
    let value = format!("Bearer {}", token.expose_secret());
    let mut value = HeaderValue::from_str(&value).map_err(|_| {
        Failure::Usage("the admin token has characters that no header can carry".into())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// Trusts what this machine trusts.
fn tls() -> Result<TlsConfig, Failure> {
    let roots = rustls_native_certs::load_native_certs();
    if roots.certs.is_empty() {
        let reason = roots.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(Failure::Failed(format!(
            "this machine has no root certificates to trust{reason}; SSL_CERT_FILE may name some"
        )));
    }
    let roots: Vec<_> =
        roots.certs.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: AdminArgs,
    }

    fn parse(line: &[&str]) -> Result<AdminArgs, clap::Error> {
        let line = ["test"].iter().chain(line);
        Line::try_parse_from(line).map(|line| line.args)
    }

    #[test]
    fn the_token_is_never_shown() {
        let args = parse(&["--admin-token", "s3cret"]).expect("sound");
        let admin = Admin::new(&args).expect("sound");
        for shown in
            [format!("{args:?}"), format!("{admin:?}"), format!("{:?}", admin.authorization)]
        {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        let broken = parse(&["--admin-token", "s3cret\n"]).expect("a token");
        let Err(Failure::Usage(problem)) = Admin::new(&broken) else { panic!("it was taken") };
        assert!(!problem.contains("s3cret"), "{problem}");
    }

    #[test]
    fn an_empty_token_and_no_time_at_all_are_no_settings() {
        for line in [&["--admin-token", ""], &["--admin-timeout", "0s"]] {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_status_of_a_refusal_chooses_the_exit_code() {
        let admin = Admin::new(&parse(&[]).expect("sound")).expect("sound");
        let refused = |status: u16, problem: Option<&str>| {
            let status = StatusCode::from_u16(status).expect("a status");
            admin.refused(status, problem.map(str::to_owned))
        };
        for (status, code) in [(400, 2), (422, 2), (401, 3), (403, 3), (404, 1), (409, 1), (503, 4)]
        {
            let failure = Failure::from(refused(status, Some("why")));
            assert_eq!(failure.exit_code(), code.into(), "{status}: {failure:?}");
        }
        assert_eq!(refused(404, Some("no lease")), Fault::NotFound("no lease".into()));
        let Failure::Failed(elsewhere) = refused(404, None).into() else { panic!("no failure") };
        assert!(elsewhere.contains("http://127.0.0.1:9011") && elsewhere.contains("admin port"));
    }
}
