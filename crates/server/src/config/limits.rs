//! The limits of a connection.

use std::time::Duration;

/// The shortest time after which an idle connection may be closed.
pub(crate) const SHORTEST_IDLE: Duration = Duration::from_secs(5 * 60);

/// The most connections to the admin port at once.
pub(crate) const ADMIN_CONNECTIONS: usize = 512 + 8 + 3 * 64;

/// The limits of one connection of the gRPC port.
///
/// A call beyond a limit is refused, or its connection is closed; no lease ends because of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortLimits {
    /// The most calls at once on one connection. By default 1,024, and at least 2: one may be the
    /// stream of keep-alives, which stays open as long as the client lives.
    pub max_streams: u32,
    /// The most bytes of headers of one call. Beyond it a call is refused with HTTP status 431. By
    /// default 32 KiB.
    pub max_header_bytes: u32,
    /// The most header fields of one call. Beyond it a call is refused with HTTP status 431. By
    /// default 100.
    pub max_header_fields: u32,
    /// The most memory of the calls in flight of one connection, in bytes. Beyond it a call is refused
    /// with `UNAVAILABLE`. By default 48 MiB.
    pub max_connection_memory: u32,
    /// The most bytes of a message, reports of usage excepted. By default 64 KiB.
    pub max_message_bytes: u32,
    /// The most bytes of a report of usage. By default 32 MiB.
    pub max_report_bytes: u32,
    /// The most events of a report of usage. By default 65,536.
    pub max_report_events: u32,
    /// The handshake timeout: how long a new connection may take until it speaks HTTP, including the
    /// TLS handshake. By default 10 s.
    pub handshake_timeout: Duration,
    /// How long the message of a call may take to arrive. By default 30 s.
    pub request_timeout: Duration,
    /// How long the answer to a call may wait until its caller reads it. By default 30 s.
    pub answer_timeout: Duration,
    /// The idle timeout: a connection without calls for this long is closed with GOAWAY, at the latest
    /// after twice this time. By default 10 minutes, and at least 5: deployed clients call every 20 s
    /// while they hold a lease, and keep an idle connection for the next stream.
    pub idle_timeout: Duration,
    /// How often a silent connection is pinged. By default 20 s.
    pub ping_interval: Duration,
    /// How long the answer to a ping may take. By default 20 s.
    pub ping_timeout: Duration,
    /// How long calls in flight may take after the server was told to stop. By default 10 s.
    pub drain_timeout: Duration,
}

impl Default for PortLimits {
    fn default() -> Self {
        Self {
            max_streams: 1_024,
            max_header_bytes: 32 * 1024,
            max_header_fields: 100,
            max_connection_memory: 48 << 20,
            max_message_bytes: 64 * 1024,
            max_report_bytes: 32 * 1024 * 1024,
            max_report_events: 65_536,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(600),
            ping_interval: Duration::from_secs(20),
            ping_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(10),
        }
    }
}
