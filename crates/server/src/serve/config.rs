//! What a server is started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::limits::PortLimits;
use super::origin::Origin;
use super::tls::TlsFiles;
use crate::admin::AdminToken;
use crate::clock::{Clock, SystemClock};
use crate::error::Error;
use crate::policy::{Policy, PolicyFile};
use crate::settings;
use crate::store::{Options, StoreUrl};

/// What a server is started with. [`Config::new`] fills in the defaults.
#[derive(Debug)]
pub struct Config {
    /// Who may borrow what.
    pub policy: Policy,
    /// The file that the policy was read from, [`Loaded::file`](crate::policy::Loaded::file): the
    /// running server looks at it and loads it again when it changes. By default none.
    pub policy_file: Option<PolicyFile>,
    /// Where leases are kept.
    pub store: StoreUrl,
    /// Where gRPC is served; port 0 takes a free one. By default 127.0.0.1:9010.
    pub listen: SocketAddr,
    /// Where the admin port is served; port 0 takes a free one. By default 127.0.0.1:9011.
    pub admin_listen: SocketAddr,
    /// The bearer token of the admin port, which it needs off loopback.
    pub admin_token: Option<AdminToken>,
    /// Whether gRPC may be served off loopback to callers that show no key.
    pub allow_anonymous: bool,
    /// The most leases held at once, whatever the policy allows. By default 2,000,000.
    pub max_leases: u64,
    /// The most bytes that the ids of all leases take up, those they share counted once. By default
    /// 512 MiB.
    pub max_id_bytes: u64,
    /// The most gRPC connections held at once; more wait in the socket. By default 16,384.
    pub max_connections: u32,
    /// What the gRPC port allows one connection, and for how long.
    pub port: PortLimits,
    /// The certificate of the gRPC port. By default none: it is served without TLS.
    pub tls: TlsFiles,
    /// How many threads serve gRPC, each with a runtime of its own. By default one per core.
    pub threads: usize,
    /// The web pages that may call by gRPC-Web from elsewhere. By default none.
    pub grpc_web_origins: Vec<Origin>,
    /// Where the time is read.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// A server for `policy` over `store`, on loopback.
    pub fn new(policy: Policy, store: StoreUrl) -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            policy,
            policy_file: None,
            store,
            listen: loopback(9010),
            admin_listen: loopback(9011),
            admin_token: None,
            allow_anonymous: false,
            max_leases: Options::default().max_leases,
            max_id_bytes: Options::default().max_id_bytes,
            max_connections: 16_384,
            port: PortLimits::default(),
            tls: TlsFiles::default(),
            threads: std::thread::available_parallelism().map_or(1, Into::into),
            grpc_web_origins: Vec::new(),
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// How the store is made.
    pub(super) fn store_options(&self) -> Options {
        let (max_leases, max_id_bytes) = (self.max_leases, self.max_id_bytes);
        Options { max_leases, max_id_bytes, clock: self.clock.clone() }
    }

    /// Refuses values that cannot be meant, and to serve everybody who can reach the machine unless
    /// that was asked for.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        settings::check(self)?;
        if !self.listen.ip().is_loopback() && !self.policy.has_indexers() && !self.allow_anonymous {
            return Err(Error::Anonymous { listen: self.listen });
        }
        if !self.admin_listen.ip().is_loopback() && self.admin_token.is_none() {
            return Err(Error::AdminExposed { listen: self.admin_listen });
        }
        Ok(())
    }
}
