//! The table of all settings.

use std::time::Duration;

use super::Setting;
use crate::config::limits::SHORTEST_IDLE;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const DAY: Duration = seconds(24 * 60 * 60);

/// All settings, in the order in which they are shown.
pub(super) static SETTINGS: &[Setting] = &[
    Setting::new("listen", "Ports", "Where gRPC is served; port 0 takes a free one", |config| {
        &mut config.listen
    }),
    Setting::new(
        "admin_listen",
        "Ports",
        "Where the admin port is served: the page, its API, probes and metrics",
        |config| &mut config.admin_listen,
    ),
    Setting::new(
        "admin_token",
        "Ports",
        "The bearer token of the admin port, needed off loopback; better given by its variable or \
         in a file that nobody else reads, for others can read a command line",
        |config| &mut config.admin_token,
    ),
    Setting::new(
        "admin_token_file",
        "Ports",
        "A file with that token instead, which is read again when it changes",
        |config| &mut config.admin_token_file,
    ),
    Setting::new(
        "allow_anonymous",
        "Ports",
        "Serve callers that show no key off loopback too",
        |config| &mut config.allow_anonymous,
    ),
    Setting::new(
        "default_organization",
        "Ports",
        "The organization of callers that name none, as services without authentication do; \
         without it they are refused",
        |config| &mut config.default_organization,
    )
    .by_default("anonymous with the built-in policy, else none"),
    Setting::new(
        "grpc_web_origins",
        "Ports",
        "The web pages that may call from elsewhere by gRPC-Web, separated by commas",
        |config| &mut config.grpc_web_origins,
    ),
    Setting::new("store", "Store", "Where leases are kept: memory: or file:PATH", |config| {
        &mut config.store
    })
    .by_default("a file in the state folder, $XDG_STATE_HOME or ~/.local/state"),
    Setting::new(
        "accept_older_state",
        "Store",
        "Open a damaged store file in the newest state that can be read, without the last changes \
         that were acknowledged; without it such a file is refused and left as it is",
        |config| &mut config.accept_older_state,
    ),
    Setting::new(
        "tls_cert",
        "TLS",
        "The certificate of the gRPC port and those that lead to its authority, as PEM; without \
         one it is served without TLS. The files are read again when they change",
        |config| &mut config.tls.certificate,
    ),
    Setting::new("tls_key", "TLS", "The private key of the certificate, as PEM", |config| {
        &mut config.tls.key
    }),
    Setting::new(
        "tls_client_ca",
        "TLS",
        "The authorities, as PEM, one of which has to have signed the certificate of each client; \
         without it clients show none",
        |config| &mut config.tls.client_ca,
    ),
    Setting::new(
        "max_leases",
        "Limits",
        "The most leases held at once, whatever the policy allows",
        |config| &mut config.max_leases,
    )
    .counted(1, u32::MAX as u64),
    Setting::new(
        "max_id_bytes",
        "Limits",
        "The most bytes that the ids of all leases take up, those they share counted once",
        |config| &mut config.max_id_bytes,
    )
    .counted(1 << 20, 1 << 40),
    Setting::new(
        "max_connections",
        "Limits",
        "The most gRPC connections held at once; more wait",
        |config| &mut config.max_connections,
    )
    .counted(1, 1 << 20),
    Setting::new(
        "max_memory",
        "Limits",
        "The most bytes that connections and calls in flight take up together, leases aside",
        |config| &mut config.max_memory,
    )
    .counted(16 << 20, 1 << 40),
    Setting::new(
        "max_connection_memory",
        "Limits",
        "The most bytes that the calls in flight of one connection take up",
        |config| &mut config.port.max_connection_memory,
    )
    .counted(1 << 20, u32::MAX as u64),
    Setting::new(
        "max_streams",
        "Limits",
        "The most calls at once on one connection, of which a client's stream of keep-alives is one",
        |config| &mut config.port.max_streams,
    )
    // With 1, the stream of keep-alives would leave no room for other calls.
    .counted(2, 1 << 16),
    Setting::new("max_header_bytes", "Limits", "The most bytes of headers of one call", |config| {
        &mut config.port.max_header_bytes
    })
    .counted(8 << 10, 1 << 20),
    Setting::new("max_header_fields", "Limits", "The most header fields of one call", |config| {
        &mut config.port.max_header_fields
    })
    .counted(32, 1 << 14),
    Setting::new(
        "max_message_bytes",
        "Limits",
        "The most bytes of one message, reports of usage excepted",
        |config| &mut config.port.max_message_bytes,
    )
    // A batch of keep-alives has to fit.
    .counted(64 << 10, 16 << 20),
    Setting::new("max_report_bytes", "Limits", "The most bytes of one report of usage", |config| {
        &mut config.port.max_report_bytes
    })
    .counted(64 << 10, 64 << 20),
    Setting::new(
        "max_report_events",
        "Limits",
        "The most events of one report of usage",
        |config| &mut config.port.max_report_events,
    )
    .counted(1, 1 << 20),
    Setting::new("threads", "Limits", "How many threads serve gRPC", |config| &mut config.threads)
        .counted(1, 1_024)
        .by_default("one per core"),
    Setting::new(
        "handshake_timeout",
        "Time-outs",
        "How long a new connection may take until it speaks HTTP, TLS included",
        |config| &mut config.port.handshake_timeout,
    )
    .timed(Duration::from_millis(100), seconds(300)),
    Setting::new(
        "request_timeout",
        "Time-outs",
        "How long the message of a call may take to arrive",
        |config| &mut config.port.request_timeout,
    )
    .timed(Duration::from_millis(100), seconds(300)),
    Setting::new(
        "answer_timeout",
        "Time-outs",
        "How long an answer may wait for its caller to read it",
        |config| &mut config.port.answer_timeout,
    )
    .timed(Duration::from_millis(100), seconds(300)),
    Setting::new(
        "idle_timeout",
        "Time-outs",
        "How long a connection may go without calls before it is told to go",
        |config| &mut config.port.idle_timeout,
    )
    .timed(SHORTEST_IDLE, DAY),
    Setting::new(
        "ping_interval",
        "Time-outs",
        "How often a silent connection is asked whether anybody is there",
        |config| &mut config.port.ping_interval,
    )
    .timed(Duration::from_millis(100), DAY),
    Setting::new("ping_timeout", "Time-outs", "How long the answer to that may take", |config| {
        &mut config.port.ping_timeout
    })
    .timed(Duration::from_millis(100), seconds(300)),
    Setting::new(
        "drain_timeout",
        "Time-outs",
        "How long calls under way may take once the server stops",
        |config| &mut config.port.drain_timeout,
    )
    .timed(Duration::ZERO, seconds(3_600)),
];
