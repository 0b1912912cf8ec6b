//! The HTTP side of the API: checks the parts of a request, and turns errors into a [`Problem`].

use std::time::Duration;

use axum::extract::rejection::{BytesRejection, JsonRejection, PathRejection, QueryRejection};
use axum::extract::{self, FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use lease::{Invalid, LeaseNumber, validate_id};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::Unavailable;

use super::model::{
    AuditQuery, Done, NoteQuery, OrganizationsQuery, Problem, RefusalsQuery, SessionsQuery,
    StepDownQuery,
};
use crate::admin::state::Admin;
use crate::operator::{MAX_NOTE, OperatorError};
use crate::text::plain_json;

/// The longest body of a request.
pub(crate) const MAX_BODY: usize = 64 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The most organizations of one page, and the default.
const ORGANIZATIONS: (u32, u32) = (500, 50);

/// The most entries of any other page, and the default.
const ENTRIES: (u32, u32) = (1_000, 100);

/// The most organizations to skip.
const MAX_OFFSET: u32 = 10_000_000;

/// The highest integer that every JSON reader represents exactly.
const MAX_NUMBER: u64 = 9_007_199_254_740_991;

/// An error that is answered with a [`Problem`].
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    error: String,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    fn invalid(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, error)
    }
}

/// An answer in JSON, in which characters that change how text is shown are escaped.
#[derive(Debug)]
pub(super) struct Json<T>(pub(super) T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        ([(CONTENT_TYPE, "application/json")], json_of(&self.0)).into_response()
    }
}

/// A value of the API as JSON.
pub(crate) fn json_of(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("the types of the API are plain data");
    plain_json(&json).into_owned()
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(Problem { error: self.error })).into_response()
    }
}

/// Answers a request that changed something, or tried to. The next snapshot of the server shows the
/// change.
pub(super) fn answer_change(
    admin: &Admin,
    outcome: Result<Done, OperatorError>,
) -> Result<Json<Done>, Failure> {
    admin.invalidate();
    Ok(Json(outcome?))
}

impl From<Unavailable> for Failure {
    fn from(error: Unavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(invalid.to_string())
    }
}

impl From<OperatorError> for Failure {
    fn from(error: OperatorError) -> Self {
        let status = match error {
            OperatorError::NotFound(_) => StatusCode::NOT_FOUND,
            OperatorError::Invalid(_) => StatusCode::BAD_REQUEST,
            OperatorError::Conflict(_) => StatusCode::CONFLICT,
            OperatorError::NotNow(_) | OperatorError::Unavailable(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        Self::new(status, error.to_string())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(rejection.body_text())
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        let status = match rejection.status() {
            // Both invalid JSON and JSON of another type are a bad request.
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        };
        Self::new(status, rejection.body_text())
    }
}

impl From<BytesRejection> for Failure {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

/// The query of a request. Every field is within its bounds.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Bounded> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let extract::Query(query) = extract::Query::<T>::from_request_parts(parts, state).await?;
        query.check()?;
        Ok(Self(query))
    }
}

/// The parameters in the path of a request.
#[derive(Debug)]
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let extract::Path(parameters) =
            extract::Path::<T>::from_request_parts(parts, state).await?;
        Ok(Self(parameters))
    }
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        Ok(Self(in_time(axum::Json::<T>::from_request(request, state)).await?.0))
    }
}

/// Waits for a body, which has to arrive in time.
pub(crate) async fn in_time<T, E: Into<Failure>>(
    body: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(body) => body.map_err(Into::into),
        Err(_) => {
            let error = format!("the body took longer than {} s", BODY_TIMEOUT.as_secs());
            Err(Failure::new(StatusCode::REQUEST_TIMEOUT, error))
        }
    }
}

/// Parses the number of a lease in a path or a query.
pub(super) fn lease_number(text: &str) -> Result<LeaseNumber, Failure> {
    text.parse().map_err(|error| Failure::invalid(format!("{text:?} is {error}")))
}

/// The size of a page of anything but organizations, with this limit.
pub(super) fn entries_per_page(limit: Option<u32>) -> usize {
    limit.unwrap_or(ENTRIES.1) as usize
}

/// The size of a page of organizations, with this limit.
pub(super) fn organizations_per_page(limit: Option<u32>) -> usize {
    limit.unwrap_or(ORGANIZATIONS.1) as usize
}

/// A query whose fields have bounds.
pub(super) trait Bounded {
    /// Refuses a field outside of its bounds.
    fn check(&self) -> Result<(), Failure>;
}

impl Bounded for OrganizationsQuery {
    fn check(&self) -> Result<(), Failure> {
        validate_id("search", &self.search, false)?;
        if self.offset > MAX_OFFSET {
            return Err(Failure::invalid(format!("offset is above {MAX_OFFSET}")));
        }
        check_limit(self.limit, ORGANIZATIONS.0)
    }
}

impl Bounded for SessionsQuery {
    fn check(&self) -> Result<(), Failure> {
        for (field, id) in [
            ("organization", &self.organization),
            ("service", &self.service),
            ("trace", &self.trace),
            ("api_key", &self.api_key),
            ("indexer", &self.indexer),
        ] {
            validate_id(field, id.as_deref().unwrap_or_default(), false)?;
        }
        check_limit(self.limit, ENTRIES.0)
    }
}

impl Bounded for RefusalsQuery {
    fn check(&self) -> Result<(), Failure> {
        validate_id("organization", self.organization.as_deref().unwrap_or_default(), false)?;
        check_limit(self.limit, ENTRIES.0)
    }
}

impl Bounded for AuditQuery {
    fn check(&self) -> Result<(), Failure> {
        if self.before.is_some_and(|before| before > MAX_NUMBER) {
            return Err(Failure::invalid(format!("before is above {MAX_NUMBER}")));
        }
        check_limit(self.limit, ENTRIES.0)
    }
}

impl Bounded for NoteQuery {
    fn check(&self) -> Result<(), Failure> {
        check_note(&self.note)
    }
}

impl Bounded for StepDownQuery {
    fn check(&self) -> Result<(), Failure> {
        check_note(&self.note)
    }
}

fn check_note(note: &str) -> Result<(), Failure> {
    if note.chars().count() > MAX_NOTE {
        return Err(Failure::invalid(format!("the note is longer than {MAX_NOTE} characters")));
    }
    Ok(())
}

fn check_limit(limit: Option<u32>, most: u32) -> Result<(), Failure> {
    match limit {
        Some(limit) if limit == 0 || limit > most => {
            Err(Failure::invalid(format!("limit is {limit}, and may be 1 to {most}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_arrive_is_refused_after_its_time() {
        let late = in_time(std::future::pending::<Result<(), Failure>>()).await.unwrap_err();
        assert_eq!(late.status, StatusCode::REQUEST_TIMEOUT);
        assert!(late.error.contains("took longer than 10 s"), "{late:?}");
    }
}
