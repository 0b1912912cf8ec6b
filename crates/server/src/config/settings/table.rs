//! The table of all settings.

use std::time::Duration;

use super::Setting;
use super::value::Slot::{
    Address, Endpoint, File, Integer32, Integer64, Name, Origins, Size, Store, Switch, Time, Token,
};
use crate::config::limits::SHORTEST_IDLE;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const TENTH: Duration = Duration::from_millis(100);
const DAY: Duration = seconds(24 * 60 * 60);

/// The headings of the groups.
const PORTS: &str = "Ports";
const STORE: &str = "Store";
const TLS: &str = "TLS";
const FLEET: &str = "Fleet";
const LIMITS: &str = "Limits";
const TIME_OUTS: &str = "Time-outs";

/// All settings, in the order in which they are shown.
pub(super) static SETTINGS: &[Setting] = &[
    Setting::new("listen", PORTS, |config| Address(&mut config.listen))
        .described("The address of the gRPC port; port 0 takes a free one"),
    Setting::new("admin_listen", PORTS, |config| Address(&mut config.admin_listen))
        .described("The address of the admin port: the page, its API, probes and metrics"),
    Setting::new("admin_token", PORTS, |config| Token(&mut config.admin_token)).described(
        "The bearer token of the admin port. Off loopback the port needs one. Other users of the \
         machine can read a command line: give the token by its variable or in a file",
    ),
    Setting::new("admin_token_file", PORTS, |config| File(&mut config.admin_token_file))
        .described("A file with the admin token. The server reads it again when it changes"),
    Setting::new("allow_anonymous", PORTS, |config| Switch(&mut config.allow_anonymous))
        .described("Serve callers without a key off loopback too"),
    Setting::new("default_organization", PORTS, |config| Name(&mut config.default_organization))
        .described(
            "The organization of callers that name none, such as services without \
             authentication. Without this setting such callers are refused",
        )
        .by_default("anonymous with the built-in policy, else none"),
    Setting::new("grpc_web_origins", PORTS, |config| Origins(&mut config.grpc_web_origins))
        .described("The origins of web pages that may call by gRPC-Web, separated by commas"),
    Setting::new("store", STORE, |config| Store(&mut config.store))
        .described("The store of leases: memory:, file:PATH, or for a fleet postgres://USER@HOST/DATABASE or etcd://HOST,HOST/PREFIX")
        .by_default("a file in the state folder, $XDG_STATE_HOME or ~/.local/state"),
    Setting::new("accept_older_state", STORE, |config| Switch(&mut config.accept_older_state))
        .described(
            "Open a damaged store file in the newest state that can be read. The last changes are \
             lost, although they were acknowledged. Without this setting the file is refused and \
             stays as it is",
        ),
    Setting::new("tls_cert", TLS, |config| File(&mut config.tls.certificate)).described(
        "The certificate of the gRPC port and the certificates up to its authority, as PEM. \
         Without it the port has no TLS. The server reads the files of TLS again when they change",
    ),
    Setting::new("tls_key", TLS, |config| File(&mut config.tls.key))
        .described("The private key of the certificate, as PEM"),
    Setting::new("tls_client_ca", TLS, |config| File(&mut config.tls.client_ca)).described(
        "The authorities of client certificates, as PEM. One of them has to have signed the \
         certificate of each client. Without this setting clients need no certificate",
    ),
    Setting::new("advertise", FLEET, |config| Endpoint(&mut config.fleet.advertise))
        .described(
            "Where the other servers of the fleet reach the gRPC port of this one. The certificate of \
             the port has to name the host",
        )
        .by_default("the listen address, if it is one address"),
    Setting::new("leader_ttl", FLEET, |config| Time(&mut config.fleet.leader_ttl))
        .described(
            "How long a renewal of the leadership is valid: after a loss of the leader another server \
             takes over within this time and two seconds. The value of the leader counts",
        )
        .timed(seconds(1), seconds(60)),
    Setting::new("fleet_ca", FLEET, |config| File(&mut config.fleet.ca)).described(
        "The authorities of the certificates of the servers of the fleet, as PEM. Off loopback the \
         servers need it. The server reads the files of TLS again when they change",
    ),
    Setting::new("fleet_cert", FLEET, |config| File(&mut config.fleet.cert)).described(
        "The certificate that this server shows to the other servers of the fleet, as PEM. They ask \
         for one if they have tls_client_ca",
    ),
    Setting::new("fleet_key", FLEET, |config| File(&mut config.fleet.key))
        .described("The private key of that certificate, as PEM"),
    Setting::new("max_leases", LIMITS, |config| Integer64(&mut config.max_leases))
        .described("The most leases at once, whatever the policy allows")
        .counted(1, u32::MAX as u64),
    Setting::new("max_id_bytes", LIMITS, |config| Integer64(&mut config.max_id_bytes))
        .described("The most bytes of the ids of all leases. An id that leases share counts once")
        .counted(1 << 20, 1 << 40),
    Setting::new("max_connections", LIMITS, |config| Integer32(&mut config.max_connections))
        .described("The most gRPC connections at once; more wait")
        .counted(1, 1 << 20),
    Setting::new("max_memory", LIMITS, |config| Integer64(&mut config.max_memory))
        .described("The most bytes of memory of connections and calls in flight, without leases")
        .counted(16 << 20, 1 << 40),
    Setting::new("max_connection_memory", LIMITS, |config| {
        Integer32(&mut config.port.max_connection_memory)
    })
    .described("The most bytes of memory of the calls in flight of one connection")
    .counted(1 << 20, u32::MAX as u64),
    // With 1, the stream of keep-alives would leave no room for other calls.
    Setting::new("max_streams", LIMITS, |config| Integer32(&mut config.port.max_streams))
        .described("The most calls at once on one connection, including the keep-alive stream")
        .counted(2, 1 << 16),
    Setting::new("max_header_bytes", LIMITS, |config| Integer32(&mut config.port.max_header_bytes))
        .described("The most bytes of headers of one call")
        .counted(8 << 10, 1 << 20),
    Setting::new("max_header_fields", LIMITS, |config| {
        Integer32(&mut config.port.max_header_fields)
    })
    .described("The most header fields of one call")
    .counted(32, 1 << 14),
    // A batch of keep-alives has to fit.
    Setting::new("max_message_bytes", LIMITS, |config| {
        Integer32(&mut config.port.max_message_bytes)
    })
    .described("The most bytes of one message, except reports of usage")
    .counted(64 << 10, 16 << 20),
    Setting::new("max_report_bytes", LIMITS, |config| Integer32(&mut config.port.max_report_bytes))
        .described("The most bytes of one report of usage")
        .counted(64 << 10, 64 << 20),
    Setting::new("max_report_events", LIMITS, |config| {
        Integer32(&mut config.port.max_report_events)
    })
    .described("The most events of one report of usage")
    .counted(1, 1 << 20),
    Setting::new("threads", LIMITS, |config| Size(&mut config.threads))
        .described("The number of threads that serve gRPC")
        .counted(1, 1_024)
        .by_default("one per core"),
    Setting::new("handshake_timeout", TIME_OUTS, |config| Time(&mut config.port.handshake_timeout))
        .described("How long a new connection may take to send its first HTTP bytes, TLS included")
        .timed(TENTH, seconds(300)),
    Setting::new("request_timeout", TIME_OUTS, |config| Time(&mut config.port.request_timeout))
        .described("How long the message of a call may take to arrive")
        .timed(TENTH, seconds(300)),
    Setting::new("answer_timeout", TIME_OUTS, |config| Time(&mut config.port.answer_timeout))
        .described("How long an answer may wait until its caller reads it")
        .timed(TENTH, seconds(300)),
    Setting::new("idle_timeout", TIME_OUTS, |config| Time(&mut config.port.idle_timeout))
        .described("How long a connection may have no calls before it is closed")
        .timed(SHORTEST_IDLE, DAY),
    Setting::new("ping_interval", TIME_OUTS, |config| Time(&mut config.port.ping_interval))
        .described("How often a silent connection is pinged")
        .timed(TENTH, DAY),
    Setting::new("ping_timeout", TIME_OUTS, |config| Time(&mut config.port.ping_timeout))
        .described("How long the answer to a ping may take")
        .timed(TENTH, seconds(300)),
    Setting::new("drain_timeout", TIME_OUTS, |config| Time(&mut config.port.drain_timeout))
        .described("How long calls in flight may take after the server was told to stop")
        .timed(Duration::ZERO, seconds(3_600)),
];
