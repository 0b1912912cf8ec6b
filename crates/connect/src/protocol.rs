//! What is spoken to a server.

use crate::first::Spoken;

/// What is spoken to a server, inside of TLS where there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2, by prior knowledge where there is no TLS.
    Http2,
}

impl Protocol {
    /// What it is called in a handshake of TLS.
    pub(crate) const fn name(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }

    /// What its first bytes are told by.
    pub(crate) const fn spoken(self) -> Spoken {
        match self {
            Self::Http1 => Spoken::Http1,
            Self::Http2 => Spoken::Http2,
        }
    }
}
