//! What an id may be given as.

use std::borrow::Cow;
use std::sync::Arc;

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
