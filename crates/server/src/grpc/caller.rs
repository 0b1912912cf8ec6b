//! Identifies callers by the keys in their requests.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use policy::{Indexer, Policy};
use tonic::Status;

pub(super) const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Returns the indexer of the key in the request, or `None` while no indexers are configured.
pub(super) fn identify<'p>(
    policy: &'p Policy,
    headers: &HeaderMap,
) -> Result<Option<&'p Indexer>, Status> {
    let caller = policy.identify(key_of(headers));
    caller.map_err(|error| Status::unauthenticated(error.to_string()))
}

/// The key in a request: `x-api-key`, else the token of `authorization: Bearer`.
pub(super) fn key_of(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get(API_KEY) {
        return Some(key.as_bytes());
    }
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}
