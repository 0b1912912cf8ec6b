//! The metadata of calls and answers that are this project's own.

use http::header::HeaderName;

pub(crate) const LEASE_TTL_MS: HeaderName = HeaderName::from_static("x-lease-ttl-ms");
pub(crate) const BORROW_ID: HeaderName = HeaderName::from_static("x-borrow-id");
pub(crate) const DENIED_SCOPE: HeaderName = HeaderName::from_static("x-denied-scope");
pub(crate) const DENIED_ACTIVE: HeaderName = HeaderName::from_static("x-denied-active");
pub(crate) const DENIED_MAX: HeaderName = HeaderName::from_static("x-denied-max");
pub(crate) const TRACES_OMITTED: HeaderName = HeaderName::from_static("x-traces-omitted");

/// Names a report, so that it counts once however often it is sent.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("x-idempotency-key");

/// Tells how many events of a report were skipped, where any were.
pub(crate) const EVENTS_SKIPPED: HeaderName = HeaderName::from_static("x-events-skipped");
