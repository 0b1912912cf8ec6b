//! The OpenAPI document, generated from the annotations of the handlers.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi as _;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, ResponseBuilder};

use super::model::Problem;
use crate::admin::state::Admin;

/// Where the document is served.
const PATH: &str = "/api/openapi.json";

/// The name of the security scheme.
const TOKEN: &str = "token";

#[derive(Debug, utoipa::OpenApi)]
#[openapi(
    info(
        title = "tgm-session admin API",
        description = "Operators read and change the state of a session server. Times are seconds since \
                       1970, UTC; ages and durations are seconds; a limit that is absent is null, \
                       and a limit of 0 admits no lease. Ids are at most 256 bytes of UTF-8. A lease is named by its \
                       number, never by its key.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "server", description = "The server as a whole, and its policy"),
        (name = "fleet", description = "The servers that share the store"),
        (name = "organizations", description = "Organizations and API keys: their limits, leases and usage"),
        (name = "sessions", description = "Live leases"),
        (name = "records", description = "Refused borrows, and the audit list"),
    ),
    components(schemas(Problem)),
    paths(openapi)
)]
struct Document;

/// The document without the endpoints.
pub(super) fn empty() -> OpenApi {
    Document::openapi()
}

/// Adds to the document what applies to every endpoint, and serves it.
pub(super) fn serve(
    router: Router<Arc<Admin>>,
    mut document: OpenApi,
    needs_token: bool,
) -> Router<Arc<Admin>> {
    for path in document.paths.paths.values_mut() {
        let methods = [&mut path.get, &mut path.put, &mut path.post, &mut path.delete];
        for operation in methods.into_iter().flatten() {
            complete(operation, needs_token);
        }
    }
    if needs_token {
        let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme));
        document.security = Some(vec![SecurityRequirement::new(TOKEN, [""; 0])]);
    }
    let text = document.to_json().expect("the document is plain data");
    let text: Arc<str> = text.into();
    router.route(
        PATH,
        get(move || async move {
            ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text.to_string())
                .into_response()
        }),
    )
}

/// Documents the checks that come before the handler.
fn complete(operation: &mut Operation, needs_token: bool) {
    let takes_body = operation.request_body.is_some();
    let takes_parameters = operation.parameters.as_ref().is_some_and(|given| !given.is_empty());
    let has_own_503 = operation.responses.responses.contains_key("503");
    let mut answer = |status: &str, description: &str| {
        let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
        let response = ResponseBuilder::new()
            .description(description)
            .content("application/json", problem)
            .build();
        operation.responses.responses.insert(status.to_owned(), response.into());
    };
    if !has_own_503 {
        answer("503", "Too many requests are in flight");
    }
    answer("403", "The request comes from a page of another site, or names another host");
    if takes_body {
        answer("408", "The body took longer than 10 s");
        answer("413", "The body is longer than 64 KiB");
        answer("415", "The content type of the body is not application/json");
    }
    if takes_body || takes_parameters {
        answer("400", "A parameter or a field is invalid");
    }
    if needs_token {
        answer("401", "The token is missing or wrong");
    }
}

/// This document.
#[utoipa::path(
    get,
    path = PATH,
    tag = "server",
    responses((status = 200, description = "The document", body = serde_json::Value)),
)]
#[allow(dead_code, reason = "only its annotation is used: the route serves the finished text")]
fn openapi() {}
