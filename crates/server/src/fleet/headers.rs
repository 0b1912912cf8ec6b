//! The headers that servers of a fleet add to a call, and those that they pass on.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING,
};

use crate::bounds::FLEET_SECRET;

pub(super) const SECRET: HeaderName = FLEET_SECRET;
pub(super) const TERM: HeaderName = HeaderName::from_static("x-tgm-fleet-term");
pub(super) const PEER: HeaderName = HeaderName::from_static("x-tgm-fleet-peer");
pub(super) const INDEXER: HeaderName = HeaderName::from_static("x-tgm-fleet-indexer");

/// The answer of a server that does not lead has this header.
pub(super) const NOT_LEADING: &str = "x-tgm-fleet-not-leading";

/// How long the caller of a call waits.
pub(super) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Headers that belong to the connection or the coding of one call, and are not passed on.
const OF_ONE_CALL: [HeaderName; 9] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    CONNECTION,
    HOST,
    TE,
    TRANSFER_ENCODING,
    TIMEOUT,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
];

/// Whether a header belongs to the fleet, and not to the caller.
fn is_of_fleet(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-tgm-fleet-")
}

/// The headers of a call that are passed on.
pub(super) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::with_capacity(headers.len() + 8);
    for (name, value) in headers {
        if !OF_ONE_CALL.contains(name) && !is_of_fleet(name) {
            passed.append(name, value.clone());
        }
    }
    passed
}
