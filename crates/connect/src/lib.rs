//! Connections to a server, for the session pools and for the commands of an operator. There may be a
//! list of servers. Every address of each is tried, and TLS files are read again before each handshake.
//!
//! A [`Way`] makes byte streams. The caller chooses what to send first. If no server answers that on one
//! address, another address is used. A [`Connection`] speaks HTTP/2 over such a stream, and
//! [`grpc`] makes calls over it.

pub mod grpc;
mod host;
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

pub use host::Host;
pub use http2::{Connecting, Connection, Connector, NotConnected};
pub use mismatch::Mismatch;
pub use protocol::Protocol;
pub use race::Others;
pub use tls::{Identity, NamedFile, TlsFiles, Unusable, Verify};
pub use unreached::Unreached;
pub use way::{Bytestream, MOST_HOSTS, Resolve, Way};
