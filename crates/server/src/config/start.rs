//! The configuration of a server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use policy::Policy;
use store::{Clock, SystemClock};
use store::{Options, StoreUrl};

use super::fleet::FleetConfig;
use super::given::Given;
use super::limits::PortLimits;
use super::origin::Origin;
use super::policy_file::{NO_FILE, PolicyFile};
use super::tls::TlsFiles;
use super::token::AdminToken;

/// The configuration of a server. [`Config::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The policy.
    pub policy: Policy,
    /// The file of the policy, [`Loaded::file`](crate::Loaded::file). The server watches it and loads it
    /// again when it changes. By default none.
    pub policy_file: Option<PolicyFile>,
    /// The settings from flags and variables. They take precedence over the file, also when it is loaded
    /// again. By default none.
    pub given: Given,
    /// The store of leases.
    pub store: StoreUrl,
    /// Whether a damaged store file is opened in an older state, without changes that were
    /// acknowledged. By default not.
    pub accept_older_state: bool,
    /// The address of the gRPC port; port 0 takes a free one. By default 127.0.0.1:9010.
    pub listen: SocketAddr,
    /// The address of the admin port; port 0 takes a free one. By default 127.0.0.1:9011.
    pub admin_listen: SocketAddr,
    /// The bearer token of the admin port, which it needs off loopback.
    pub admin_token: Option<AdminToken>,
    /// A file with that token instead, which is read again when it changes. By default none.
    pub admin_token_file: Option<PathBuf>,
    /// Whether gRPC may be served off loopback to callers that show no key.
    pub allow_anonymous: bool,
    /// The organization of callers that name none, as services without authentication do. By default
    /// `anonymous` under the built-in policy and none under any other: such callers are refused.
    pub default_organization: Option<Box<str>>,
    /// The most leases at once, whatever the policy allows. By default 2,000,000.
    pub max_leases: u64,
    /// The most bytes of the ids of all leases. An id that leases share counts once. By default
    /// 512 MiB.
    pub max_id_bytes: u64,
    /// The most gRPC connections at once; more wait in the socket. By default 16,384.
    ///
    /// Connections that have shown no key have at most half of them, and idle ones of these are closed
    /// first.
    pub max_connections: u32,
    /// The most bytes of memory of connections and calls in flight, without leases. By
    /// default 256 MiB.
    pub max_memory: u64,
    /// The limits of one connection of the gRPC port.
    pub port: PortLimits,
    /// The certificate of the gRPC port. By default none: it is served without TLS.
    pub tls: TlsFiles,
    /// Where the other servers of a fleet reach this one, and TLS between them.
    pub fleet: FleetConfig,
    /// How many threads serve gRPC, each with a runtime of its own. By default one per core.
    pub threads: usize,
    /// The origins of web pages that may call by gRPC-Web. By default none.
    pub grpc_web_origins: Vec<Origin>,
    /// How many log lines the program around the server has dropped so far, for the metrics. By
    /// default it stays 0.
    pub dropped_log_lines: Arc<AtomicU64>,
    /// The clock of the server.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// A server for `policy` over `store`, on loopback.
    pub fn new(policy: Policy, store: StoreUrl) -> Self {
        let default_organization = policy.is_built_in().then(|| lease::ANONYMOUS.into());
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            policy,
            policy_file: None,
            given: Given::default(),
            store,
            accept_older_state: false,
            listen: loopback(9010),
            admin_listen: loopback(9011),
            admin_token: None,
            admin_token_file: None,
            allow_anonymous: false,
            default_organization,
            max_leases: Options::default().max_leases,
            max_id_bytes: Options::default().max_id_bytes,
            max_connections: 16_384,
            max_memory: 256 << 20,
            port: PortLimits::default(),
            tls: TlsFiles::default(),
            fleet: FleetConfig::default(),
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            grpc_web_origins: Vec::new(),
            dropped_log_lines: Arc::default(),
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// The hash of the policy file.
    fn policy_hash(&self) -> &str {
        self.policy_file.as_ref().map_or(NO_FILE, PolicyFile::hash)
    }

    /// The options of the store.
    pub(crate) fn store_options(&self) -> Options {
        Options {
            max_leases: self.max_leases,
            max_id_bytes: self.max_id_bytes,
            clock: self.clock.clone(),
            accept_older_state: self.accept_older_state,
            leader_ttl: self.fleet.leader_ttl,
            policy_hash: self.policy_hash().into(),
            ..Options::default()
        }
    }
}
