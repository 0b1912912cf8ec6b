//! The errors of the library, each kind with its facts.

#[cfg(feature = "tgm")]
use std::error::Error as _;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

#[cfg(any(feature = "tgm", feature = "tonic-status"))]
use tonic::Code;

/// Why a session or worker was not granted, or why it ended.
///
/// A usage budget that is spent ([`Error::QuotaExceeded`]) and a limit that is reached
/// ([`Error::ConcurrentStreamLimitExceeded`], [`Error::WorkersLimitExceeded`]) are different errors:
/// waiting helps only with a limit.
///
/// ```
/// use tgm_session::{Error, Scope};
///
/// let error = Error::ConcurrentStreamLimitExceeded { active: 7, max: 10, scope: Scope::Organization };
/// assert_eq!(error.to_string(), "Concurrent stream limit exceeded (active sessions: 7/10)");
/// assert!(error.is_retryable());
/// assert_eq!(tonic::Status::from(error).code(), tonic::Code::ResourceExhausted);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The session server cannot be reached, does not answer in time, or its answer is invalid.
    #[error("session server unavailable: {message}")]
    #[non_exhaustive]
    Unavailable {
        /// The problem and its causes.
        message: String,
        /// The cause, if there is one.
        source: Option<Cause>,
    },
    /// The session server does not accept the indexer API key.
    #[error("unauthenticated: {message}")]
    Unauthenticated {
        /// The message of the server.
        message: String,
    },
    /// The organization, the API key or the service is disabled, or an operator ended the session.
    #[error("permission denied: {message}")]
    PermissionDenied {
        /// The message of the server.
        message: String,
    },
    /// A usage budget of the organization is spent.
    #[error("usage quota exceeded: {message}")]
    QuotaExceeded {
        /// The message of the server.
        message: String,
    },
    /// A limit of sessions is reached.
    #[error("Concurrent stream limit exceeded{}", Numbers("sessions", *active, *max, *scope))]
    ConcurrentStreamLimitExceeded {
        /// How many the scope holds; 0 when that is [`Scope::Unknown`].
        active: u64,
        /// How many it may hold; 0 when the scope is [`Scope::Unknown`].
        max: u64,
        /// What the limit counts.
        scope: Scope,
    },
    /// A limit of workers is reached.
    #[error("Worker limit exceeded{}", Numbers("workers", *active, *max, *scope))]
    WorkersLimitExceeded {
        /// How many the scope holds; 0 when that is [`Scope::Unknown`].
        active: u64,
        /// How many it may hold; 0 when the scope is [`Scope::Unknown`].
        max: u64,
        /// What the limit counts.
        scope: Scope,
    },
    /// The session of a worker was released or has ended.
    #[error("session not found: it was released or has ended")]
    SessionNotFound,
    /// The call or the session URL is invalid.
    #[error("invalid argument: {message}")]
    #[non_exhaustive]
    InvalidArgument {
        /// The field or parameter, and what is wrong with it.
        message: String,
        /// The cause, if there is one.
        source: Option<Cause>,
    },
    /// The pool is closed, or the runtime that it was made in is gone.
    #[error("the session pool is closed")]
    Closed,
    /// The lease was held and is lost, and could not be borrowed again.
    #[error("lost: {cause}")]
    Lost {
        /// Why it could not be kept alive or borrowed again.
        #[source]
        cause: Box<Error>,
    },
}

/// The numbers of a limit in a message; nothing when they are unknown.
struct Numbers(&'static str, u64, u64, Scope);

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(.., Scope::Unknown) => Ok(()),
            Self(what, active, max, scope) => {
                let of = match scope {
                    Scope::Service => " for the whole service",
                    Scope::ApiKey => " for this API key",
                    _ => "",
                };
                write!(f, "{of} (active {what}: {active}/{max})")
            }
        }
    }
}

impl Error {
    /// Whether the same borrow may succeed later, without a change of a limit, a budget, a key or the
    /// call.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::ConcurrentStreamLimitExceeded { .. }
            | Self::WorkersLimitExceeded { .. } => true,
            Self::Lost { cause } => cause.is_retryable(),
            Self::Unauthenticated { .. }
            | Self::PermissionDenied { .. }
            | Self::QuotaExceeded { .. }
            | Self::SessionNotFound
            | Self::InvalidArgument { .. }
            | Self::Closed => false,
        }
    }

    /// Returns the gRPC code of the answer of a streaming service to its own caller.
    #[cfg(any(feature = "tgm", feature = "tonic-status"))]
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Unavailable { .. } | Self::Closed => Code::Unavailable,
            Self::Unauthenticated { .. } => Code::Unauthenticated,
            Self::PermissionDenied { .. } => Code::PermissionDenied,
            Self::QuotaExceeded { .. }
            | Self::ConcurrentStreamLimitExceeded { .. }
            | Self::WorkersLimitExceeded { .. } => Code::ResourceExhausted,
            Self::SessionNotFound => Code::NotFound,
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::Lost { cause } => cause.code(),
        }
    }

    /// Makes an [`Error::Unavailable`], also for plugins of an application.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable { message: message.into(), source: None }
    }

    /// Makes an [`Error::InvalidArgument`], also for plugins of an application.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidArgument { message: message.into(), source: None }
    }

    /// Adds the cause to an [`Error::Unavailable`] or [`Error::InvalidArgument`].
    ///
    /// The message should say the cause, too: a caller over gRPC gets only the message.
    ///
    /// ```
    /// use std::error::Error as _;
    /// use std::io;
    /// use tgm_session::Error;
    ///
    /// let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
    /// let error = Error::unavailable(refused.to_string()).caused_by(refused);
    /// let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    /// assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::ConnectionRefused));
    /// ```
    #[must_use]
    pub fn caused_by(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        if let Self::Unavailable { source, .. } | Self::InvalidArgument { source, .. } = &mut self {
            *source = Some(Cause(Inside::Own(Arc::new(cause))));
        }
        self
    }

    /// Adds the cause of a status that the transport made.
    #[cfg(feature = "tgm")]
    pub(crate) fn caused_by_status(mut self, status: &tonic::Status) -> Self {
        if let Self::Unavailable { source, .. } | Self::InvalidArgument { source, .. } = &mut self
            && status.source().is_some()
        {
            *source = Some(Cause(Inside::OfStatus(Arc::new(status.clone()))));
        }
        self
    }

    pub(crate) fn of_request(invalid: lease::Invalid) -> Self {
        Self::invalid(invalid.to_string())
    }

    pub(crate) fn lost(self) -> Self {
        Self::Lost { cause: Box::new(self) }
    }

    /// Whether a limit was reached, for which `borrow-wait` waits.
    pub(crate) fn is_limit(&self) -> bool {
        matches!(
            self,
            Self::ConcurrentStreamLimitExceeded { .. } | Self::WorkersLimitExceeded { .. }
        )
    }
}

#[cfg(feature = "tonic-status")]
impl From<Error> for tonic::Status {
    /// Makes the answer of a streaming service to its own caller.
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// The cause of an [`Error`], which [`source`](std::error::Error::source) returns.
///
/// Two causes are equal when their texts are.
#[derive(Clone)]
pub struct Cause(Inside);

#[derive(Clone)]
enum Inside {
    Own(Arc<dyn std::error::Error + Send + Sync>),
    /// The cause of a status that the transport made.
    #[cfg(feature = "tgm")]
    OfStatus(Arc<tonic::Status>),
}

impl Deref for Cause {
    type Target = dyn std::error::Error;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            Inside::Own(cause) => &**cause,
            #[cfg(feature = "tgm")]
            Inside::OfStatus(status) => status.source().unwrap_or(&**status),
        }
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Cause {}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only its text: the cause itself may hold what messages must not show.
        self.to_string().fmt(f)
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// All leases of one service.
    Service,
    /// The leases of one organization.
    Organization,
    /// The leases of one API key.
    ApiKey,
    /// The workers of one trace, that is of one session.
    Trace,
    /// The leases of this pool, by a limit of its own.
    Pool,
    /// The server did not say which limit is reached.
    Unknown,
}

impl Scope {
    /// Returns the name of the scope as the wire writes it (`x-denied-scope`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => lease::Scope::Service.as_str(),
            Self::Organization => lease::Scope::Organization.as_str(),
            Self::ApiKey => lease::Scope::ApiKey.as_str(),
            Self::Trace => lease::Scope::Trace.as_str(),
            Self::Pool => "pool",
            Self::Unknown => "unknown",
        }
    }

    pub(crate) fn from_wire(name: &str) -> Option<Self> {
        [Self::Service, Self::Organization, Self::ApiKey, Self::Trace, Self::Pool]
            .into_iter()
            .find(|scope| scope.as_str() == name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    const FULL: Error =
        Error::ConcurrentStreamLimitExceeded { active: 7, max: 10, scope: Scope::Organization };

    #[test]
    fn the_message_shows_how_many_are_active_and_then_the_maximum() {
        assert_eq!(FULL.to_string(), "Concurrent stream limit exceeded (active sessions: 7/10)");
        let workers = Error::WorkersLimitExceeded { active: 3, max: 4, scope: Scope::Trace };
        assert_eq!(workers.to_string(), "Worker limit exceeded (active workers: 3/4)");
        for (scope, of) in
            [(Scope::ApiKey, "for this API key"), (Scope::Service, "for the whole service")]
        {
            let error = Error::ConcurrentStreamLimitExceeded { active: 5, max: 5, scope };
            let said = format!("Concurrent stream limit exceeded {of} (active sessions: 5/5)");
            assert_eq!(error.to_string(), said);
            let error = Error::WorkersLimitExceeded { active: 5, max: 5, scope };
            assert_eq!(
                error.to_string(),
                format!("Worker limit exceeded {of} (active workers: 5/5)")
            );
        }
    }

    #[test]
    fn a_refusal_without_numbers_shows_none() {
        let (active, max, scope) = (0, 0, Scope::Unknown);
        let sessions = Error::ConcurrentStreamLimitExceeded { active, max, scope };
        assert_eq!(sessions.to_string(), "Concurrent stream limit exceeded");
        let workers = Error::WorkersLimitExceeded { active, max, scope };
        assert_eq!(workers.to_string(), "Worker limit exceeded");
        // A maximum of 0 is a number.
        let nobody = Error::WorkersLimitExceeded { active, max, scope: Scope::Pool };
        assert_eq!(nobody.to_string(), "Worker limit exceeded (active workers: 0/0)");
    }

    #[test]
    fn a_limit_may_be_retried_and_a_spent_budget_may_not() {
        let quota = Error::QuotaExceeded { message: "egress_bytes 10/10".into() };
        assert!(FULL.is_retryable() && !quota.is_retryable());
        assert_eq!(FULL.code(), quota.code());
        assert_ne!(FULL.to_string(), quota.to_string());
    }

    #[test]
    fn every_kind_has_its_code_says_whether_to_retry_and_keeps_its_message() {
        let message = || "egress_bytes 7/7".to_owned();
        let full = Error::WorkersLimitExceeded { active: 3, max: 4, scope: Scope::Trace };
        for (error, code, again) in [
            (Error::unavailable(message()), Code::Unavailable, true),
            (Error::Unauthenticated { message: message() }, Code::Unauthenticated, false),
            (Error::PermissionDenied { message: message() }, Code::PermissionDenied, false),
            (Error::QuotaExceeded { message: message() }, Code::ResourceExhausted, false),
            (FULL, Code::ResourceExhausted, true),
            (full, Code::ResourceExhausted, true),
            (Error::SessionNotFound, Code::NotFound, false),
            (Error::invalid(message()), Code::InvalidArgument, false),
            (Error::Closed, Code::Unavailable, false),
        ] {
            let lost = error.clone().lost();
            assert_eq!((error.code(), error.is_retryable()), (code, again), "{error:?}");
            assert_eq!((lost.code(), lost.is_retryable()), (code, again), "{lost:?}");
            let (words, status) = (error.to_string(), Status::from(error));
            assert_eq!((status.code(), status.message()), (code, &*words));
        }
    }

    #[test]
    fn an_error_keeps_what_caused_it_and_its_copies_do_too() {
        let cause = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = Error::unavailable("nobody listens").caused_by(cause).lost();
        let unavailable = error.source().unwrap();
        assert_eq!(unavailable.to_string(), "session server unavailable: nobody listens");
        let cause = unavailable.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
        assert_eq!(cause.unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(error.clone(), error);
        assert_ne!(error, Error::unavailable("nobody listens").lost());
        assert!(Error::Closed.caused_by(std::fmt::Error).source().is_none());
    }

    #[test]
    fn a_lost_lease_answers_with_the_code_of_its_cause() {
        let lost = FULL.lost();
        assert_eq!(lost.code(), Code::ResourceExhausted);
        assert_eq!(
            Status::from(lost).message(),
            "lost: Concurrent stream limit exceeded (active sessions: 7/10)"
        );
        assert_eq!(Error::unavailable("no answer").lost().code(), Code::Unavailable);
    }

    #[test]
    fn every_scope_reads_back_from_its_wire_name() {
        for scope in [Scope::Service, Scope::Organization, Scope::ApiKey, Scope::Trace, Scope::Pool]
        {
            assert_eq!(Scope::from_wire(scope.as_str()), Some(scope));
        }
        assert_eq!(Scope::from_wire("galaxy"), None);
        assert_eq!(Scope::from_wire(Scope::Unknown.as_str()), None);
    }
}
