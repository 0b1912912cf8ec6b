//! The request of a borrow.

use std::hash::Hasher as _;

use fnv::FnvHasher;

use crate::digest::add_text;
use crate::id::{BorrowId, Invalid, validate_id};
use crate::lease::Kind;

/// The request of one borrow.
///
/// ```
/// use lease::{Kind, Request};
///
/// let session = Request::session("t1r", "acme").trace("4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_eq!(session.kind(), Kind::Session);
/// assert!(session.validate().is_ok());
/// assert_eq!(Request::session("t1r", "").validate().unwrap_err().field, "organization_id");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The name of the indexer that asks; `None` where no indexer is configured.
    pub indexer: Option<&'a str>,
    /// The service to run, as the policy names it.
    pub service: &'a str,
    /// The organization that pays.
    pub organization: &'a str,
    /// The API key id the stream came with; empty when there is none.
    pub api_key: &'a str,
    /// The trace id that ties workers to their session; empty or all zeros when there is none.
    pub trace: &'a str,
    /// Most workers under the trace at once; 0 makes the borrow a session.
    pub max_workers: i64,
    /// The caller's name for this borrow, if it gave one.
    pub borrow_id: Option<BorrowId>,
}

impl<'a> Request<'a> {
    /// A session of `service` for `organization`, with every optional id left out.
    pub const fn session(service: &'a str, organization: &'a str) -> Self {
        Self {
            indexer: None,
            service,
            organization,
            api_key: "",
            trace: "",
            max_workers: 0,
            borrow_id: None,
        }
    }

    /// A worker under `trace`, of which there may be `max_workers` at once.
    pub const fn worker(
        service: &'a str,
        organization: &'a str,
        trace: &'a str,
        max_workers: i64,
    ) -> Self {
        Self { trace, max_workers, ..Self::session(service, organization) }
    }

    /// The same request under a trace id.
    pub const fn trace(self, trace: &'a str) -> Self {
        Self { trace, ..self }
    }

    /// The same request with an API key id.
    pub const fn api_key(self, api_key: &'a str) -> Self {
        Self { api_key, ..self }
    }

    /// The same request from the indexer called `name`.
    pub const fn indexer(self, name: &'a str) -> Self {
        Self { indexer: Some(name), ..self }
    }

    /// The same request under a borrow id.
    pub const fn borrow_id(self, id: BorrowId) -> Self {
        Self { borrow_id: Some(id), ..self }
    }

    /// Whether a session or a worker is asked for.
    pub const fn kind(&self) -> Kind {
        if self.max_workers > 0 { Kind::Worker } else { Kind::Session }
    }

    /// A number that distinguishes this request from others under the same borrow id.
    ///
    /// It covers every field but the indexer and the borrow id, and is the same on every machine
    /// and in every release, because stores keep it.
    pub fn fingerprint(&self) -> u64 {
        let mut fingerprint = FnvHasher::default();
        for text in [self.service, self.organization, self.api_key, self.trace] {
            add_text(&mut fingerprint, text);
        }
        fingerprint.write(&self.max_workers.to_be_bytes());
        fingerprint.finish()
    }

    /// Checks everything that can be checked without the table.
    ///
    /// # Errors
    ///
    /// [`Invalid`] names the field as the wire calls it: `service` or `organization_id` is empty,
    /// an id is longer than [`MAX_ID_BYTES`](crate::MAX_ID_BYTES), or the cap is negative.
    pub fn validate(&self) -> Result<(), Invalid> {
        validate_id("service", self.service, true)?;
        validate_id("organization_id", self.organization, true)?;
        validate_id("api_key_id", self.api_key, false)?;
        validate_id("trace_id", self.trace, false)?;
        if self.max_workers < 0 {
            return Err(Invalid { field: "max_worker_for_trace_id", problem: "is negative" });
        }
        Ok(())
    }
}

/// The default name of an organization that has none.
pub const ANONYMOUS: &str = "anonymous";

/// The organization that a request counts for: the one it `named` or, where it named none, the `default`.
///
/// # Errors
///
/// [`Invalid`] when there is neither. It names the setting that would help.
///
/// ```
/// use lease::organization_of;
///
/// assert_eq!(organization_of("acme", Some("anonymous")), Ok("acme"));
/// assert_eq!(organization_of("", Some("anonymous")), Ok("anonymous"));
/// let refused = organization_of("", None).unwrap_err();
/// assert_eq!(refused.to_string(), "organization_id is empty, and no default_organization is set");
/// ```
pub fn organization_of<'a>(named: &'a str, default: Option<&'a str>) -> Result<&'a str, Invalid> {
    let problem = "is empty, and no default_organization is set";
    match named {
        "" => default.ok_or(Invalid { field: "organization_id", problem }),
        named => Ok(named),
    }
}
