//! The names of the metadata that this project defines.

use http::header::HeaderName;

pub(crate) const LEASE_TTL_MS: HeaderName = HeaderName::from_static("x-lease-ttl-ms");
pub(crate) const BORROW_ID: HeaderName = HeaderName::from_static("x-borrow-id");
pub(crate) const DENIED_SCOPE: HeaderName = HeaderName::from_static("x-denied-scope");
pub(crate) const DENIED_ACTIVE: HeaderName = HeaderName::from_static("x-denied-active");
pub(crate) const DENIED_MAX: HeaderName = HeaderName::from_static("x-denied-max");
pub(crate) const TRACES_OMITTED: HeaderName = HeaderName::from_static("x-traces-omitted");

/// The idempotency key of a report, which counts once however often it is sent.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("x-idempotency-key");

/// The number of events of a report that were skipped, if any.
pub(crate) const EVENTS_SKIPPED: HeaderName = HeaderName::from_static("x-events-skipped");
