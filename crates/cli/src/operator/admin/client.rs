//! A client of the admin API: its calls, and what answers and missing answers mean.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use connect::{Mismatch, Unreached};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tgm_session_server::api::Problem;

use super::link::{Link, Unanswered};
use super::url::AdminUrl;
use crate::failure::Failure;

/// The longest answer. The longest page with the longest ids is far shorter.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// The address of the admin API, and its token.
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
    // Parsed later: clap would show the password of a URL that must not have one.
    admin: SecretString,

    /// The bearer token of the admin port, if it needs one. Prefer the variable, because others
    /// can read a command line [default: none].
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
    if text.is_empty() { Err("the token is empty".into()) } else { Ok(text.into()) }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = tgm_session::parse_duration(text).map_err(|error| error.to_string())?;
    if timeout.is_zero() { Err("the timeout is 0".into()) } else { Ok(timeout) }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The server does not know what the call is about.
    NotFound(String),
    /// The server refuses the change in its present state.
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
    link: Link,
    url: AdminUrl,
    authorization: Option<HeaderValue>,
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
        Ok(Self {
            link: Link::new(url.way()?, args.admin_timeout)?,
            url,
            authorization: args.admin_token.as_ref().map(authorization).transpose()?,
        })
    }

    /// The URL of the admin API.
    pub(crate) fn place(&self) -> &str {
        self.url.as_str()
    }

    pub(super) fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &impl Serialize,
    ) -> Result<T, Fault> {
        self.call(Method::GET, path, query, String::new())
    }

    pub(super) fn put<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Fault> {
        let body = serde_json::to_string(body)
            .map_err(|error| Failure::Failed(format!("cannot write the request: {error}")))?;
        self.call(Method::PUT, path, &(), body)
    }

    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &impl Serialize,
    ) -> Result<T, Fault> {
        self.call(Method::POST, path, query, String::new())
    }

    pub(super) fn delete<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &impl Serialize,
    ) -> Result<T, Fault> {
        self.call(Method::DELETE, path, query, String::new())
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &impl Serialize,
        body: String,
    ) -> Result<T, Fault> {
        let changes = method != Method::GET;
        let query = serde_urlencoded::to_string(query)
            .map_err(|error| Failure::Failed(format!("cannot write the request: {error}")))?;
        let mut request = Request::builder()
            .method(method)
            .uri(self.url.call(path, &query))
            .header(USER_AGENT, concat!("tgm-session/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::from(body))
            .map_err(|error| Failure::Usage(format!("this cannot be asked for: {error}")))?;
        let answered = self.link.ask(async |client| {
            let (head, body) =
                client.request(request).await.map_err(Unanswered::Call)?.into_parts();
            let body = Limited::new(body, MAX_BYTES).collect().await;
            Ok((head.status, body.map_err(Unanswered::Body)?.to_bytes()))
        });
        match answered {
            Ok((status, body)) => self.read(status, &body),
            Err(unanswered) => Err(self.unanswered(&unanswered, changes).into()),
        }
    }

    /// Reads an answer.
    fn read<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T, Fault> {
        if status.is_success() {
            return serde_json::from_slice(body).map_err(|error| {
                let place = self.place();
                let problem = format!("{place} answered what this version cannot read: {error}");
                Failure::Failed(problem + "; " + PORT).into()
            });
        }
        let problem = serde_json::from_slice(body).ok().map(|Problem { error }| error);
        // A port for TLS may answer plaintext with a message that names HTTPS or SSL.
        let says = |word: &[u8]| body.windows(word.len()).any(|part| part == word);
        if status == StatusCode::BAD_REQUEST
            && problem.is_none()
            && !self.url.is_tls()
            && (says(b"HTTPS") || says(b"SSL"))
        {
            return Err(self.mismatched(Mismatch::Tls).into());
        }
        Err(self.refused(status, problem))
    }

    /// The failure of a call that was refused.
    fn refused(&self, status: StatusCode, problem: Option<String>) -> Fault {
        let place = self.place();
        let failure = match (status, problem) {
            (StatusCode::NOT_FOUND, Some(problem)) => return Fault::NotFound(problem),
            (StatusCode::CONFLICT, Some(problem)) => return Fault::Conflict(problem),
            (StatusCode::UNAUTHORIZED, _) => Failure::Refused(match self.authorization {
                Some(_) => format!("{place} refuses this admin token"),
                None => format!(
                    "{place} needs its admin token: set TGM_SESSION_ADMIN_TOKEN, or give \
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

    /// The failure of a call without an answer. It is unknown whether a change was made.
    fn unanswered(&self, unanswered: &Unanswered, changes: bool) -> Failure {
        let place = self.place();
        let unknown = if changes { "; whether it was done is not known" } else { "" };
        let late = || format!("{place} gave no answer in {:?}", self.link.timeout());
        let error: &(dyn Error + 'static) = match unanswered {
            Unanswered::Late => return Failure::Unavailable(late() + unknown),
            Unanswered::Body(error) if error.is::<LengthLimitError>() => {
                let problem = format!("{place} answered with more than {MAX_BYTES} bytes");
                return Failure::Failed(problem + "; " + PORT);
            }
            Unanswered::Body(error) => &**error,
            Unanswered::Call(error) => error,
        };
        if let Some(mismatch) = Mismatch::of(error) {
            return self.mismatched(mismatch);
        }
        if let Some(unreached) = causes(error).find_map(|error| error.downcast_ref()) {
            return self.unreached(unreached);
        }
        let said: Vec<_> = causes(error).map(|error| error.to_string()).collect();
        let problem = format!("{place}: {}{unknown}", said.join(": "));
        if causes(error).any(|error| error.downcast_ref().is_some_and(hyper::Error::is_parse)) {
            return Failure::Failed(problem + "; " + PORT);
        }
        Failure::Unavailable(problem)
    }

    /// The failure to reach the server at any of its addresses. Nothing was sent.
    fn unreached(&self, unreached: &Unreached) -> Failure {
        let place = self.place();
        Failure::Unavailable(if let Some(error) = unreached.no_address() {
            format!("{place}: there is no host of this name ({error})")
        } else if unreached.is_refused() {
            format!(
                "nobody listens at {place} ({unreached}): start the server, or say with --admin \
                 where its admin port is"
            )
        } else if unreached.is_late() {
            format!("{place} gave no answer in {:?} ({unreached})", self.link.timeout())
        } else {
            format!("{place} cannot be reached ({unreached})")
        })
    }

    /// The failure when one end speaks TLS and the other does not.
    fn mismatched(&self, mismatch: Mismatch) -> Failure {
        let scheme = match mismatch {
            Mismatch::Tls => "https",
            Mismatch::Plaintext => "http",
        };
        let place = self.place();
        Failure::Usage(format!("{place}: {mismatch}: --admin has to begin with {scheme}://"))
    }
}

/// An error and what caused it.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// A hint for an unexpected answer.
const PORT: &str = "is that the admin port (9011 by default) of a tgm-session server?";

fn authorization(token: &SecretString) -> Result<HeaderValue, Failure> {
    let value = format!("Bearer {}", token.expose_secret());
    let mut value = HeaderValue::from_str(&value).map_err(|_| {
        Failure::Usage("the admin token has characters that no header can carry".into())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests;
