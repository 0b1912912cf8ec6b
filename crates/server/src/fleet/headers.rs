//! The headers that one server of a fleet passes on to another.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING,
};

use crate::headers::GRPC_TIMEOUT;

/// Headers that belong to the connection or the coding of one call, and are not passed on.
const OF_ONE_CALL: [HeaderName; 9] = [
    CONTENT_TYPE,
    CONTENT_LENGTH,
    CONNECTION,
    HOST,
    TE,
    TRANSFER_ENCODING,
    GRPC_TIMEOUT,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
];

/// Whether a header belongs to the fleet, and not to the caller.
fn is_of_fleet(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-tgm-fleet-")
}

/// Whether a header of a call is passed on.
pub(super) fn is_passed_on(name: &HeaderName) -> bool {
    !OF_ONE_CALL.contains(name) && !is_of_fleet(name)
}

/// The headers of a call that are passed on.
pub(super) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = HeaderMap::with_capacity(headers.len() + 8);
    for (name, value) in headers {
        if is_passed_on(name) {
            passed.append(name, value.clone());
        }
    }
    passed
}
