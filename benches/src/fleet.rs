//! Three servers on one database, all of them real processes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use connect::{Connection, Connector, Host, Protocol, TlsFiles, Verify, Way};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::timeout;
use wire::worker::keep_alive_response::Status as Kept;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{KeepAliveRequest, WorkersStateRequest};

use crate::http;
use crate::process::{Server, now};

pub mod network;

pub use network::SERVERS;
use network::{Cable, Network};

/// How long a server may take to answer a question.
const ANSWER: Duration = Duration::from_secs(2);

/// How long the fleet may take until it is complete again.
const SETTLE: Duration = Duration::from_secs(60);

/// How long a server may take to stop.
const STOP: Duration = Duration::from_secs(60);

/// A member that was seen within this time is alive, in seconds.
const ALIVE: f64 = 2.5;

/// Keep-alives that are in flight at once.
const AT_ONCE: usize = 32;

/// How often all servers are asked for one answer.
const ATTEMPTS: usize = 20;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// How the servers are started.
#[derive(Debug)]
pub struct Setup {
    /// The server: tgm-session.
    pub program: PathBuf,
    /// Where the policy and the logs are.
    pub folder: PathBuf,
    /// The text of the policy.
    pub policy: String,
    /// How long a renewal of the leadership is valid.
    pub leader_ttl: Duration,
    /// The URL of the store.
    pub store: String,
    /// The network of the servers, if it can be cut. Else they are on loopback.
    pub network: Option<Network>,
    /// Further arguments of `serve`.
    pub arguments: Vec<String>,
}

/// One server, or its place while it does not run.
struct Node {
    grpc: SocketAddr,
    admin: SocketAddr,
    server: Option<Server>,
}

/// The servers of one database.
pub struct Fleet {
    nodes: Vec<Node>,
    /// Dropped after the servers, because the network is part of it.
    setup: Setup,
    runtime: Handle,
}

/// The token of the admin ports that are not on loopback.
const TOKEN: &str = "faults";

/// The ports of a server that has addresses of its own.
const PORTS: (u16, u16) = (9010, 9011);

/// Where a server on loopback listens. No other program uses the address, and outgoing connections have
/// the address 127.0.0.1.
fn free_address(server: usize) -> anyhow::Result<SocketAddr> {
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, high | 0x80, low, u8::try_from(server)? + 1);
    Ok(TcpListener::bind((ip, 0))?.local_addr()?)
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("setup", &self.setup).finish_non_exhaustive()
    }
}

impl Fleet {
    /// Starts the servers.
    ///
    /// # Errors
    ///
    /// A server does not start.
    pub fn start(setup: Setup, runtime: &Handle) -> anyhow::Result<Self> {
        std::fs::write(setup.folder.join("policy.toml"), &setup.policy)?;
        let mut fleet = Self { nodes: Vec::new(), setup, runtime: runtime.clone() };
        for number in 0..SERVERS {
            let (grpc, admin) = match &fleet.setup.network {
                None => (free_address(number)?, free_address(number)?),
                Some(_) => {
                    let ip: IpAddr = Network::address(number).parse()?;
                    ((ip, PORTS.0).into(), (ip, PORTS.1).into())
                }
            };
            fleet.nodes.push(Node { grpc, admin, server: None });
            fleet.start_server(number)?;
        }
        fleet.settle()?;
        Ok(fleet)
    }

    /// Where callers reach each server.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.grpc.to_string()).collect()
    }

    /// The authorities of the certificates of the servers, if they have any.
    pub fn authorities(&self) -> Option<&Path> {
        self.setup.network.as_ref().map(|network| &*network.certificate)
    }

    /// The gRPC address of a server.
    pub fn address(&self, number: usize) -> SocketAddr {
        self.nodes[number].grpc
    }

    /// A server, if it runs.
    pub fn server(&self, number: usize) -> Option<&Server> {
        self.nodes[number].server.as_ref()
    }

    /// The log of a server.
    pub fn log(&self, number: usize) -> PathBuf {
        self.setup.folder.join(format!("server-{number}.log"))
    }

    /// Starts a server at its place.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub fn start_server(&mut self, number: usize) -> anyhow::Result<()> {
        let log = self.log(number);
        let Setup { program, folder, leader_ttl, store, network, arguments, .. } = &self.setup;
        let node = &mut self.nodes[number];
        let mut command = match network {
            None => Command::new(program),
            Some(network) => network.command(number, program),
        };
        command.args(["serve", "--format", "json", "--store", store]);
        command.arg("--config").arg(folder.join("policy.toml"));
        command.args(["--listen", &node.grpc.to_string()]);
        command.args(["--admin-listen", &node.admin.to_string()]);
        command.args(["--leader-ttl", &format!("{}ms", leader_ttl.as_millis())]);
        if let Some(Network { certificate, key, .. }) = network {
            command.args(["--allow-anonymous", "--admin-token", TOKEN]);
            command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
            command.arg("--fleet-ca").arg(certificate);
        }
        command.args(arguments);
        node.server = Some(Server::start(command, Some(&log))?);
        Ok(())
    }

    /// Kills a server by SIGKILL.
    pub fn kill_server(&mut self, number: usize) {
        self.nodes[number].server = None;
    }

    /// Stops a server by SIGTERM.
    ///
    /// # Errors
    ///
    /// It does not end, or with an error.
    pub fn stop_server(&mut self, number: usize) -> anyhow::Result<()> {
        let mut server = self.nodes[number].server.take().context("the server runs")?;
        let status = server.stop(STOP)?.context("a server did not stop")?;
        ensure!(status.success(), "a server ended with {status}");
        Ok(())
    }

    /// Sends a signal to a server.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn signal(&self, number: usize, signal: Signal) -> anyhow::Result<()> {
        let server = self.nodes[number].server.as_ref().context("the server runs")?;
        let pid = Pid::from_raw(server.id().cast_signed()).context("a process has a number")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Cuts a cable of a server, or mends it.
    ///
    /// # Errors
    ///
    /// This is not possible.
    pub fn cut(&self, number: usize, cable: Cable, is_cut: bool) -> anyhow::Result<()> {
        self.setup.network.as_ref().context("there is a network")?.cut(number, cable, is_cut)
    }

    fn token(&self) -> Option<&'static str> {
        self.setup.network.as_ref().map(|_| TOKEN)
    }

    fn ask(&self, number: usize, method: &str, path: &str) -> Option<Value> {
        let node = &self.nodes[number];
        node.server.as_ref()?;
        let asked = http::ask_with(self.token(), node.admin, method, path, "", ANSWER);
        let (status, body) = self.runtime.block_on(asked).ok()?;
        (status == 200).then(|| serde_json::from_str(&body).ok())?
    }

    /// The role of each server that is alive.
    fn roles<'a>(&self, servers: &'a Value) -> Vec<&'a str> {
        let servers: Vec<&Value> = servers.as_array().into_iter().flatten().collect();
        let ago = |server: &Value| server["seen_seconds_ago"].as_f64().unwrap_or(f64::MAX);
        let role = |node: &Node| {
            let address = node.grpc.to_string();
            // Until it is forgotten, the one that was killed there is listed too.
            let here = servers.iter().filter(|server| server["address"] == address);
            let latest = here.min_by(|a, b| ago(a).total_cmp(&ago(b)))?;
            (ago(latest) < ALIVE).then(|| latest["role"].as_str())?
        };
        self.nodes.iter().filter_map(role).collect()
    }

    /// The leader and its term, once all servers run and agree.
    fn agreed(&self) -> Option<(usize, u64)> {
        let mut leader = None;
        for number in 0..SERVERS {
            let fleet = self.ask(number, "GET", "/api/fleet")?;
            let address = fleet["leader"]["address"].as_str()?;
            let leads = self.nodes.iter().position(|node| address == node.grpc.to_string())?;
            let seen = (leads, fleet["leader"]["epoch"].as_u64()?);
            let mut roles = self.roles(&fleet["servers"]);
            roles.sort_unstable();
            if *leader.get_or_insert(seen) != seen || roles != ["leader", "standby", "standby"] {
                return None;
            }
        }
        leader
    }

    /// Waits until all servers run and agree who leads. Returns the leader and its term.
    ///
    /// # Errors
    ///
    /// This takes too long.
    pub fn settle(&self) -> anyhow::Result<(usize, u64)> {
        let start = std::time::Instant::now();
        loop {
            if let Some(agreed) = self.agreed() {
                return Ok(agreed);
            }
            if start.elapsed() > SETTLE {
                let views: Vec<_> = (0..SERVERS)
                    .map(|number| format!("{:?}", self.ask(number, "GET", "/api/fleet")))
                    .collect();
                anyhow::bail!("the servers do not agree who leads:\n{}", views.join("\n"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Asks the leader to hand over.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn step_down(&self, leader: usize) -> anyhow::Result<()> {
        let admin = self.nodes[leader].admin;
        let limit = Duration::from_secs(30);
        let path = "/api/fleet/step-down?note=faults";
        let asked = http::ask_with(self.token(), admin, "POST", path, "", limit);
        let (status, body) = self.runtime.block_on(asked)?;
        ensure!(status == 200, "the leader does not step down: {status} {body}");
        Ok(())
    }

    /// A connection to each server that runs.
    fn connections(&self) -> anyhow::Result<Vec<WorkerPoolClient<Connection>>> {
        let running = self.nodes.iter().filter(|node| node.server.is_some());
        running
            .map(|node| {
                let host = Host::new(&node.grpc.ip().to_string(), node.grpc.port());
                let way = Way::new(host, [], Protocol::Http2);
                let (way, scheme) = match self.authorities() {
                    None => (way, "http"),
                    Some(file) => {
                        let verify = Verify::File(file.to_owned().into());
                        (way.with_tls(TlsFiles { verify, identity: None })?, "https")
                    }
                };
                let _in_runtime = self.runtime.enter();
                let connection = Connection::new(Connector::Way(Arc::new(way)));
                let origin = format!("{scheme}://{}", node.grpc).parse()?;
                Ok(WorkerPoolClient::with_origin(connection, origin))
            })
            .collect()
    }

    /// Keeps each lease alive. Returns whether it was there, and when that was answered.
    ///
    /// # Errors
    ///
    /// No server answers.
    pub fn keep_alive(&self, keys: &[String]) -> anyhow::Result<Vec<(bool, u64)>> {
        let connections = self.connections()?;
        self.runtime.block_on(async {
            let mut answers = Vec::new();
            for keys in keys.chunks(AT_ONCE) {
                let asked = keys.iter().map(|key| keep_alive(connections.clone(), key.clone()));
                let asked: Vec<_> = asked.map(tokio::spawn).collect();
                for answer in asked {
                    answers.push(answer.await??);
                }
            }
            Ok(answers)
        })
    }

    /// How many leases of `service` an organization has.
    ///
    /// # Errors
    ///
    /// The servers do not answer.
    pub fn count(&self, service: &str, organization: &str) -> anyhow::Result<i64> {
        let mut server = self.connections()?.into_iter().next().context("a server runs")?;
        let request = WorkersStateRequest {
            service: service.to_owned(),
            organization_id: organization.to_owned(),
            api_key_id: String::new(),
        };
        let answer =
            self.runtime.block_on(async { timeout(ANSWER, server.workers_state(request)).await });
        let answer = answer.context("a server does not answer")??.into_inner();
        Ok(answer.worker_state.context("the server answers without a state")?.borrowed_workers)
    }

    /// Where the policy and the logs are.
    pub fn folder(&self) -> &Path {
        &self.setup.folder
    }
}

/// Keeps a lease alive at the first of these servers that answers. Returns whether it was there, and when
/// that was answered.
async fn keep_alive(
    mut servers: Vec<WorkerPoolClient<Connection>>,
    key: String,
) -> anyhow::Result<(bool, u64)> {
    for _ in 0..ATTEMPTS {
        for server in &mut servers {
            let request = KeepAliveRequest { worker_key: key.clone(), ..Default::default() };
            if let Ok(Ok(kept)) = timeout(ANSWER, server.keep_alive(request)).await {
                return Ok((kept.into_inner().status() == Kept::TtlExtended, now()));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    anyhow::bail!("no server answers a keep-alive")
}
