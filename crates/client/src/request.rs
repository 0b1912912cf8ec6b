//! Requests for sessions and workers, and the ids of their holders.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use crate::error::Error;

/// The callback for a session that ends before its holder released it.
pub type OnError = Box<dyn FnOnce(Error) + Send>;

/// Who a lease is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ids {
    /// The service, as the server's policy names it.
    pub service: Arc<str>,
    /// The organization that pays.
    pub organization: Arc<str>,
    /// The id of the API key the stream came with; empty when there is none.
    pub api_key: Arc<str>,
    /// The trace id that ties workers to their session: that of the request, or a random one.
    pub trace: Arc<str>,
}

impl Ids {
    /// Returns the ids of a worker of `service` under the session with these ids.
    pub(crate) fn with_service(&self, service: Arc<str>) -> Self {
        Self { service, ..self.clone() }
    }
}

/// A request for a session.
///
/// ```
/// # use tgm_session::SessionRequest;
/// let request = SessionRequest::new("t1r", "acme")
///     .api_key("key-1")
///     .trace("4bf92f3577b34da6a3ce929d0e0e4736")
///     .on_error(|reason| eprintln!("the stream has to stop: {reason}"));
/// ```
#[must_use = "a request borrows nothing by itself"]
pub struct SessionRequest {
    /// The service to run, as the server's policy names it.
    pub service: Arc<str>,
    /// The organization that pays. An empty one stands for the `default_organization` of the server, if
    /// it has one; with `local://`, for `anonymous`.
    pub organization: Arc<str>,
    /// The id of the API key the stream came with; empty when there is none.
    pub api_key: Arc<str>,
    /// The trace id that ties workers to the session.
    ///
    /// An empty one, or one of zeros only, is none. The session gets a random one then, because the
    /// server limits the workers of a trace.
    pub trace: Arc<str>,
    /// The callback for a session that ends before it is released.
    pub on_error: Option<OnError>,
}

impl SessionRequest {
    /// Asks for a session of `service` for `organization`.
    pub fn new(service: impl Into<Id>, organization: impl Into<Id>) -> Self {
        Self {
            service: service.into().into(),
            organization: organization.into().into(),
            api_key: Arc::default(),
            trace: Arc::default(),
            on_error: None,
        }
    }

    /// Adds the id of the API key the stream came with.
    pub fn api_key(mut self, api_key: impl Into<Id>) -> Self {
        self.api_key = api_key.into().into();
        self
    }

    /// Adds the trace id of the stream. Without it the session gets a random one.
    pub fn trace(mut self, trace: impl Into<Id>) -> Self {
        self.trace = trace.into().into();
        self
    }

    /// Adds a callback that is called, at most once, if the session is revoked or lost.
    ///
    /// Its argument is what [`Guard::ended`](crate::Guard::ended) resolves with. It runs on a thread of
    /// the pool for callbacks, in the context of the runtime that borrowed. It may block, and a panic is
    /// logged. The callbacks of other sessions run meanwhile, unless eight of them block.
    ///
    /// A plugin gets a callback that only queues this one. With a direct call of
    /// [`SessionPool`](crate::SessionPool) the plugin calls the callback, which must not block then.
    pub fn on_error(mut self, on_error: impl FnOnce(Error) + Send + 'static) -> Self {
        self.on_error = Some(Box::new(on_error));
        self
    }

    /// Makes a random trace id unless there is one.
    pub(crate) fn with_trace(self) -> Self {
        if lease::forms_a_scope(&self.trace) {
            return self;
        }
        self.trace(format!("{:032x}", rand::random::<u128>()))
    }

    pub(crate) fn ids(&self) -> Ids {
        Ids {
            service: self.service.clone(),
            organization: self.organization.clone(),
            api_key: self.api_key.clone(),
            trace: self.trace.clone(),
        }
    }
}

impl fmt::Debug for SessionRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionRequest")
            .field("service", &self.service)
            .field("organization", &self.organization)
            .field("api_key", &self.api_key)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// A request for a worker.
#[derive(Clone, Debug)]
#[must_use = "a request borrows nothing by itself"]
pub struct WorkerRequest {
    /// The service to run, as the server's policy names it.
    pub service: Arc<str>,
    /// The most workers under the session at once; 0 admits none.
    pub max_per_session: u32,
}

impl WorkerRequest {
    /// Asks for a worker of `service`, of which the session may hold `max_per_session`.
    pub fn new(service: impl Into<Id>, max_per_session: u32) -> Self {
        Self { service: service.into().into(), max_per_session }
    }
}

/// An id in a request: a service, an organization, an API key or a trace.
///
/// Every kind of text converts to it, and an `Arc<str>` without a copy.
///
/// ```
/// # use std::sync::Arc;
/// # use tgm_session::SessionRequest;
/// let organization = String::from("acme");
/// let shared: Arc<str> = "t1r".into();
/// let request = SessionRequest::new(&shared, &organization).api_key("key-1").trace(organization);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Id(Arc<str>);

macro_rules! from_text {
    ($($text:ty: $read:expr;)*) => {$(
        impl From<$text> for Id {
            fn from(text: $text) -> Self {
                let read: fn($text) -> Arc<str> = $read;
                Self(read(text))
            }
        }
    )*};
}

from_text! {
    &str: |text| text.into();
    &String: |text| text.as_str().into();
    &&str: |text| (*text).into();
    String: Arc::from;
    Box<str>: Arc::from;
    Cow<'_, str>: |text| text.as_ref().into();
    Arc<str>: |text| text;
    &Arc<str>: Arc::clone;
}

impl From<Id> for Arc<str> {
    fn from(id: Id) -> Self {
        id.0
    }
}
