//! How a connection of the gRPC port is read: in turns, which count as work of its caller.

use std::sync::Arc;

use crate::bounds::connection::Connection;
use crate::stream::Tracker;

/// The connection preface of HTTP/2; no request of HTTP/1.1 is shorter.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads a connection in turns, and notes when its first bytes of HTTP have arrived.
#[derive(Debug)]
pub(super) struct Pace {
    connection: Arc<Connection>,
    /// The bytes of the preface that have not arrived yet.
    missing: &'static [u8],
    /// Whether the bytes that have arrived are those of the HTTP/2 preface.
    is_http2: bool,
}

impl Pace {
    pub(super) const fn new(connection: Arc<Connection>) -> Self {
        Self { connection, missing: PREFACE, is_http2: true }
    }
}

impl Tracker for Pace {
    fn readable(&self) -> usize {
        self.connection.readable()
    }

    fn received(&mut self, bytes: &[u8]) {
        self.connection.count_read(bytes.len());
        if !self.missing.is_empty() {
            self.is_http2 &=
                self.missing.iter().zip(bytes).all(|(expected, byte)| expected == byte);
            self.missing = self.missing.get(bytes.len()..).unwrap_or_default();
            if self.missing.is_empty() {
                self.connection.mark_http(self.is_http2);
            }
        }
    }
}
