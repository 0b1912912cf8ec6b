//! The names of metadata.

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

/// How long the caller of a call waits.
pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The secret by which the servers of a fleet know each other.
pub(crate) const FLEET_SECRET: HeaderName = HeaderName::from_static("x-tgm-fleet-secret");

/// The term of leadership that a call which is passed on is meant for.
pub(crate) const FLEET_TERM: HeaderName = HeaderName::from_static("x-tgm-fleet-term");

/// The address of the caller of a call that is passed on.
pub(crate) const FLEET_PEER: HeaderName = HeaderName::from_static("x-tgm-fleet-peer");

/// The indexer of a call that is passed on.
pub(crate) const FLEET_INDEXER: HeaderName = HeaderName::from_static("x-tgm-fleet-indexer");

/// What a server adds to its answer that does not lead the fleet.
pub(crate) const FLEET_NOT_LEADING: &str = "x-tgm-fleet-not-leading";
