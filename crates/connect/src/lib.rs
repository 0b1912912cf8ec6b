//! The way to a server, for the session pools and for the commands of an operator: every address
//! of its name is tried, and TLS is spoken with files that are read again.
//!
//! A [`Way`] makes streams of bytes. What is spoken over them is the caller's: it greets the server
//! on a stream, and an address whose server does not answer the greeting counts as one that does
//! not answer at all.

mod first;
mod mismatch;
mod protocol;
mod race;
mod tls;
mod trust;
mod way;

pub use mismatch::Mismatch;
pub use protocol::Protocol;
pub use race::{Others, Try, Unreached};
pub use tls::{Identity, NamedFile, TlsFiles, Unusable, Verify};
pub use way::{Bytestream, Resolve, Way};
