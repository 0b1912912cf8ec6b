//! The protocol that the client speaks to a server.

/// The protocol that the client speaks to a server, inside TLS if there is TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2; without TLS, by prior knowledge.
    Http2,
}

impl Protocol {
    /// The name of the protocol in the TLS handshake (ALPN).
    pub(crate) const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}
