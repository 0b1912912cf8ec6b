//! Borrow, keep alive and return the sessions and workers of a streaming data service.
//!
//! A *session* is the right to run one stream; a *worker* is the right to run one job under it.
//! Many server processes share what an organization bought. So each process borrows from a session
//! server, or counts by itself with `local://`.
//!
//! ```no_run
//! # async fn serve() {}
//! # async fn example() -> Result<(), tgm_session::Error> {
//! use std::time::Duration;
//! use tgm_session::SessionRequest;
//!
//! let pool = tgm_session::connect("tgm://sessions.example:9010?indexer-api-key=$KEY").await?;
//!
//! let request = SessionRequest::new("t1r", "acme")
//!     .api_key("key-1")
//!     .trace("4bf92f3577b34da6a3ce929d0e0e4736")
//!     .on_error(|reason| eprintln!("the stream has to stop: {reason}"));
//! let session = pool.borrow(request).await?;
//! let worker = session.borrow_worker("t2w", 10).await?;
//!
//! tokio::select! {
//!     reason = session.ended() => return Err(reason), // revoked or lost: stop the stream
//!     () = serve() => {}
//! }
//! drop(worker); // queues the return: never blocks, never spawns
//! session.release().await?; // waits until the server has it back
//!
//! let report = pool.close(Duration::from_secs(10)).await;
//! assert_eq!(report.not_returned, 0);
//! # Ok(())
//! # }
//! ```
//!
//! # Pools by URL
//!
//! [`connect()`] knows `tgm://` and `local://`. A [`Registry`] adds the schemes of an application.
//! `$VAR` and `${VAR}` are replaced from the environment first. A variable that is not set is empty,
//! and a warning names it. Messages show the names of variables and never their values. A variable in
//! the query whose value holds `&`, `#`, `%`, `+` or a space is refused, because the value would be cut
//! or changed. Such a key goes into a file (`indexer-api-key-file`).
//!
//! An unknown parameter is an error, and an empty value is the default. A user, a path, a fragment
//! and the second of two parameters with one name are ignored, with a warning.
//!
//! **`tgm://HOST[:PORT]`**, a session server. The default host is `session.thegraph.market`. The default
//! port is 443, or 80 with plaintext.
//!
//! | parameter | default | meaning |
//! | --- | --- | --- |
//! | `also` | none | further servers, `HOST:PORT,HOST:PORT`; see below |
//! | `plaintext` | false | no TLS |
//! | `insecure` | false | accept any certificate |
//! | `ca-file` | the system's | trust this certificate authority only, or this certificate of the server itself |
//! | `client-cert-file`, `client-key-file` | none | show this certificate |
//! | `indexer-api-key` | none | who this service is; never logged |
//! | `indexer-api-key-file` | none | a file with that key, read again when it changes: a second later at most, and when the server refuses the key |
//! | `request-keep-alive-delay` | `20s` | longest time between two keep-alives of a lease |
//! | `default-max-request-per-organization` | none | most sessions of one organization and service that this pool admits (10 while it fails open); formerly `default-max-request-per-user` |
//! | `minimal-worker-life-duration` | the server's, else `5s` | a session released younger counts until this age |
//! | `borrow-timeout` | `5s` | how long a borrow may take, retries included |
//! | `borrow-wait` | `0s` | how long a borrow is tried again while a limit is reached |
//! | `on-unavailable` | `deny` | what happens while the server cannot be reached: `deny` or `allow`; see below |
//!
//! Every address of the host is tried. While one is silent, the next one is tried in parallel. The
//! certificate files and the authorities of the system are read again before each handshake. While they
//! are invalid, the last valid ones stay in use, and the log has a warning.
//!
//! `also` lists up to 15 further servers. An entry without a port has the default one, and an IPv6
//! address has its brackets. The pool uses one server at a time. When that one is gone, a single attempt
//! to connect tries all of them, first the one in use and then the others in their order, and takes the
//! first that answers. The pool stays there. A server that is silent for two seconds while a call waits
//! is pinged, and counts as gone if it does not answer within two seconds more. All servers must count
//! the same leases, as those of a fleet do. Each must have a certificate for its own name. The API key
//! and the parameters of TLS are the same for all.
//!
//! **`local://`**, only this process:
//!
//! | parameter | default | most |
//! | --- | --- | --- |
//! | `max_sessions` | 100 | sessions |
//! | `max_sessions_per_organization` | 10 | sessions of one organization; formerly `max_sessions_per_user` |
//! | `max_workers` | 100 | workers |
//! | `max_workers_per_organization` | 100 | workers of one organization; formerly `max_workers_per_user` |
//! | `max_workers_per_session` | 100 | workers of one session |
//!
//! # What happens to a session
//!
//! The pool keeps every lease alive from one task, at a third of its TTL or every
//! `request-keep-alive-delay`. A failed keep-alive is repeated every second. A session ends, and
//! its `on_error` callback is called, when the server revokes it ([`Error::PermissionDenied`],
//! [`Error::QuotaExceeded`]), or when it is lost ([`Error::Lost`]): 95 % of a TTL passed without a
//! successful keep-alive, or a server that forgot it does not grant it again. A server that was restarted and
//! forgot everything grants it again, and the holder notices nothing.
//!
//! If the server supports it, keep-alives are sent in batches over one stream, and a revocation arrives
//! at once. With other servers, and whenever the stream breaks, each keep-alive is a call of its own,
//! and a revocation arrives with the next one. No session ends because of the stream.
//!
//! # Outages
//!
//! With `on-unavailable=allow` the pool *fails open*: while the server cannot be reached, sessions go
//! on, and new ones are admitted: the first ones after `borrow-timeout`, and later ones at once. When
//! the server is back, all are borrowed from it, sessions before workers. A session that its limits do
//! not allow ends as [`Error::ConcurrentStreamLimitExceeded`].
//!
//! Returns are repeated for up to one TTL. A borrow whose answer did not arrive is returned by its
//! borrow id, so a lost packet costs no slot.
//!
//! # Features
//!
//! `tgm` and `tonic-status` are on by default. Without `tgm` there is only `local://`, and neither gRPC,
//! HTTP/2 nor TLS is compiled. `tower` gates services with such a pool, too. `metrics` needs `tgm`.
//!
//! # Types of other crates in signatures
//!
//! A type of another crate in a signature ties its users to one version of that crate. So there are only
//! these:
//!
//! - `tokio` 1: the streams of bytes of [`TgmPool::with_connector`], and the channel of the answer of a
//!   [`Release`]. The whole library needs it.
//! - `tonic` 0.14, feature `tonic-status`, on by default: [`Error`] converts to its `Status`, which is
//!   what a streaming service answers. The conversion has a feature of its own, so that another one for
//!   another version can be added.
//! - `http` 1, `http-body` 1, `bytes` 1, `tower-layer` 0.3 and `tower-service` 0.3, feature `tower`:
//!   these traits define a layer. The two crates of tower have no version 1.0, and have not changed since
//!   2019. tonic and axum use the same ones.
//! - `metrics` 0.24, feature `metrics`: no signature has it, but the recorder must be installed for this
//!   version.
//!
//! # Metrics
//!
//! [`Pool::stats`] returns what a pool holds and has done. With the feature `metrics` the `tgm://` pools
//! report the same, once a second, to the recorder that the application installed for the `metrics`
//! crate: gauges `tgm_session_pool_held` (`kind` = `session`, `worker`) and
//! `tgm_session_pool_attached`; counters `tgm_session_pool_borrowed_total` (`kind`), `…_denied_total`
//! (`reason`), `…_ended_total` (`reason` = `revoked`, `lost`), `…_keep_alives_total` (`outcome` =
//! `extended`, `failed`), `…_returned_total`, `…_not_returned_total`, `…_retried_total`,
//! `…_borrowed_again_total` and `…_failed_open_total`. All pools of a process add up.
//!
//! None of them is labelled by service. The label `kind` distinguishes sessions and workers, which are
//! the two services of a program. Keep-alives, returns and retries belong to the connection, which all
//! services share. The metrics of the session server show what each service holds and is refused, over
//! all programs (`tgm_session_live_leases`, `tgm_session_borrows_total`).

#![cfg_attr(
    not(feature = "tgm"),
    allow(dead_code, unused_imports, reason = "shared modules have helpers for tgm:// alone")
)]

#[cfg(feature = "tgm")]
mod api_key;
mod callbacks;
mod counts;
mod dsn;
mod duration;
mod error;
mod expand;
mod guard;
mod held;
mod local;
#[cfg(feature = "tgm")]
mod metered;
mod plugin;
mod pool;
mod registry;
mod request;
mod secret;
mod stats;
#[cfg(feature = "tgm")]
mod tgm;
#[cfg(feature = "tower")]
mod tower;

pub use dsn::{Dsn, Parameters};
pub use duration::{InvalidDuration, parse_duration};
pub use error::{Cause, Error, Scope};
pub use guard::{Guard, Session, Worker};
pub use held::{Lease, Release, Released};
pub use local::{LocalConfig, LocalPool};
pub use plugin::{BoxFuture, CloseReport, SessionPool};
pub use pool::Pool;
pub use registry::Registry;
pub use request::{Id, Ids, OnError, SessionRequest, WorkerRequest};
pub use secret::Secret;
pub use stats::{Denied, PoolStats};
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub use tgm::simulation;
#[cfg(feature = "tgm")]
pub use tgm::{OnUnavailable, PoolState, TgmConfig, TgmPool};
#[cfg(feature = "tower")]
pub use tower::{SessionBody, SessionLayer, SessionService};

/// Makes the pool that `url` describes, with the plugins `tgm` and `local`.
///
/// # Errors
///
/// As [`Registry::connect`].
///
/// ```
/// # async fn example() -> Result<(), tgm_session::Error> {
/// let pool = tgm_session::connect("local://?max_sessions_per_organization=3").await?;
/// # Ok(())
/// # }
/// ```
pub async fn connect(url: &str) -> Result<Pool, Error> {
    Registry::default().connect(url).await
}

/// The examples of the README are compiled with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
