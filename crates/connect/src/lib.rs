//! Connections to a server, for the session pools and for the commands of an operator. Every address of
//! the host is tried, and TLS files are read again before each handshake.
//!
//! A [`Way`] makes byte streams. The caller chooses what to send first. If the server does not answer
//! that on one address, another address is used. A [`Connection`] speaks HTTP/2 over such a stream, and
//! [`grpc`] makes calls over it.

pub mod grpc;
mod http2;
mod mismatch;
mod protocol;
mod race;
mod signs;
mod tls;
mod trust;
mod unreached;
mod watched;
mod way;

pub use http2::{Connecting, Connection, Connector, NotConnected};
pub use mismatch::Mismatch;
pub use protocol::Protocol;
pub use race::Others;
pub use tls::{Identity, NamedFile, TlsFiles, Unusable, Verify};
pub use unreached::{Try, Unreached};
pub use way::{Bytestream, Resolve, Way};
