//! The soak: faults for a while, then none, then the final checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use benches::process::Server;
use parking_lot::Mutex;
use rand::RngExt as _;
use tokio::time::{Instant, sleep};

use crate::counts::{Counts, TTL, policy};
use crate::guest::{Command, Report};
use crate::hosts::HostProcess;
use crate::proxy::{Dial, Proxy, Wire};
use crate::show::Progress;
use crate::weather;

/// Hosts whose network fails and which may be killed.
const UNLUCKY: usize = 4;

/// The longest outage of the server. It is shorter than a TTL, so that hosts with a good network lose no
/// lease.
const AWAY: Duration = Duration::from_secs(4);

/// The time between two checks of the server and the hosts.
const LOOK: Duration = Duration::from_secs(1);

/// How the soak is run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The server: tgm-session
    #[arg(long, value_name = "PROGRAM")]
    server: PathBuf,
    /// Where its store and the logs are made
    #[arg(long, value_name = "FOLDER")]
    folder: PathBuf,
    /// Seconds of faults; the calm and the final checks come on top
    #[arg(long, default_value_t = 120)]
    seconds: u64,
}

impl Options {
    fn trouble(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// The counts of events.
#[derive(Clone, Copy, Debug, Default)]
struct Toll {
    weathers: u64,
    cuts: u64,
    server_kills: u64,
    host_kills: u64,
    granted: u64,
    refused: u64,
    unavailable: u64,
    lost: u64,
}

/// The address at which the server was started last.
type Place = Arc<Mutex<Option<std::net::SocketAddr>>>;

impl Toll {
    fn add(&mut self, report: &Report) {
        self.granted += report.granted;
        self.refused += report.refused;
        self.unavailable += report.unavailable;
        self.lost += report.lost;
    }
}

struct Soak {
    options: Options,
    policy: PathBuf,
    server: Option<Server>,
    place: Place,
    hosts: Vec<HostProcess>,
    proxies: Vec<Proxy>,
    /// How many hosts were started so far.
    started: usize,
    toll: Toll,
    progress: Progress,
}

/// Runs the soak.
///
/// # Errors
///
/// The server does not count what the hosts hold, or something failed that must not fail.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    let mut soak = Soak::begin(options).await?;
    let played = soak.play().await;
    soak.progress.end();
    played
}

fn dial(place: Place) -> Dial {
    Arc::new(move || {
        let server = *place.lock();
        Box::pin(async move {
            let server = server.ok_or(std::io::ErrorKind::ConnectionRefused)?;
            let stream = tokio::net::TcpStream::connect(server).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Wire>)
        })
    })
}

fn up_to(longest: Duration) -> Duration {
    longest.mul_f64(rand::rng().random_range(0.0..1.0))
}

fn one_of(count: usize) -> usize {
    rand::rng().random_range(0..count)
}

impl Soak {
    async fn begin(options: &Options) -> anyhow::Result<Self> {
        let file = options.folder.join("policy.toml");
        fs::write(&file, policy()).with_context(|| format!("cannot write {}", file.display()))?;
        let mut soak = Self {
            options: options.clone(),
            policy: file,
            server: None,
            place: Place::default(),
            hosts: Vec::new(),
            proxies: Vec::new(),
            started: 0,
            toll: Toll::default(),
            progress: Progress::new(),
        };
        soak.start_server().await?;
        for _ in 0..=UNLUCKY {
            soak.proxies.push(Proxy::start(dial(soak.place.clone())).await?);
            let host = soak.start_host(soak.proxies.len() - 1)?;
            soak.hosts.push(host);
        }
        Ok(soak)
    }

    /// The last host always has a good network.
    fn lucky(&self) -> &HostProcess {
        self.hosts.last().expect("hosts are started before anything else")
    }

    fn start_host(&mut self, number: usize) -> anyhow::Result<HostProcess> {
        self.started += 1;
        let name = format!("host-{number}.{}", self.started);
        let log = self.options.folder.join("hosts.log");
        // One host with a failing network continues without a server.
        let open = if number == 0 { "&on-unavailable=allow" } else { "" };
        let parameters = format!("borrow-timeout=3s&request-keep-alive-delay=3s{open}");
        HostProcess::start(name, &self.proxies[number], &parameters, &log)
    }

    async fn start_server(&mut self) -> anyhow::Result<()> {
        let mut command = std::process::Command::new(&self.options.server);
        command.args(["serve", "--format", "json", "--listen", "127.0.0.1:0"]);
        command.args(["--admin-listen", "127.0.0.1:0", "--config"]).arg(&self.policy);
        let store = self.options.folder.join("leases");
        command.arg("--store").arg(format!("file:{}", store.display()));
        let log = self.options.folder.join("server.log");
        // The start blocks, and this thread forwards the connections of the hosts meanwhile.
        let started =
            tokio::task::spawn_blocking(move || Server::start(command, Some(&log))).await?;
        let server = started?;
        *self.place.lock() = Some(server.address());
        self.server = Some(server);
        Ok(())
    }

    /// Kills the server with SIGKILL.
    fn kill_server(&mut self) {
        *self.place.lock() = None;
        self.server = None;
    }

    async fn play(&mut self) -> anyhow::Result<()> {
        let trouble = self.options.trouble();
        let end = Instant::now() + trouble;
        while Instant::now() < end {
            self.make_trouble().await?;
            let calm = Instant::now() + up_to(2 * LOOK);
            while Instant::now() < calm.min(end) {
                sleep(LOOK.min(calm - Instant::now())).await;
                self.look().await?;
                let left = end.saturating_duration_since(Instant::now());
                self.tell_progress(&format!("{:>3} s to go", left.as_secs()));
            }
        }
        self.settle().await?;
        self.close().await
    }

    async fn make_trouble(&mut self) -> anyhow::Result<()> {
        let unlucky = one_of(UNLUCKY);
        match one_of(12) {
            0 => {
                self.toll.server_kills += 1;
                self.kill_server();
                sleep(up_to(AWAY)).await;
                self.start_server().await?;
            }
            1 => {
                self.toll.host_kills += 1;
                let next = self.start_host(unlucky)?;
                let last = std::mem::replace(&mut self.hosts[unlucky], next).kill().await?;
                self.toll.add(&last);
            }
            2 | 3 => {
                self.toll.cuts += 1;
                self.proxies[unlucky].cut();
            }
            4..7 => self.proxies[unlucky].clear(),
            _ => {
                self.toll.weathers += 1;
                let (name, weather) = weather::next();
                self.proxies[unlucky].set(weather);
                self.tell_progress(name);
            }
        }
        Ok(())
    }

    /// Checks what must hold at any time: the limits, and that hosts with a good network lose no lease.
    async fn look(&mut self) -> anyhow::Result<()> {
        if let Some(server) = &self.server {
            Counts::of(server.address())?.by_trace().await?;
        }
        for host in &mut self.hosts {
            host.tell(Command::Report).await?;
        }
        let lost = self.lucky().last.lost;
        ensure!(lost == 0, "a host with a good network lost {lost} leases");
        Ok(())
    }

    fn tell_progress(&mut self, what: &str) {
        let mut toll = self.toll;
        let mut held = 0;
        for HostProcess { last, .. } in &self.hosts {
            toll.add(last);
            held += last.holds.values().sum::<u64>();
        }
        let Toll { weathers, cuts, server_kills, host_kills, granted, refused, .. } = toll;
        let Toll { unavailable, lost, .. } = toll;
        self.progress.show(&format!(
            "{what:<15} {held:>3} held | {granted} granted, {refused} refused, {unavailable} \
             without a server, {lost} lost | {weathers} faults, {cuts} resets, {server_kills} \
             server and {host_kills} host kills"
        ));
    }

    /// Waits, without faults, until the server counts what the hosts hold and continues to.
    async fn settle(&mut self) -> anyhow::Result<()> {
        for proxy in &self.proxies {
            proxy.clear();
        }
        for host in &mut self.hosts {
            host.tell(Command::Rest).await?;
        }
        let start = Instant::now();
        let mut agreed = None;
        loop {
            let (held, counted) = self.compare().await?;
            let since = match (held == counted, agreed) {
                (true, Some(since)) => since,
                (true, None) => Instant::now(),
                // A difference is an error only after some time, because one side learns of the end
                // of a lease first.
                (false, _) if start.elapsed() > 3 * TTL => {
                    bail!(
                        "the server does not count what is held:\n{}",
                        differences(&held, &counted)
                    )
                }
                (false, _) => {
                    agreed = None;
                    sleep(LOOK).await;
                    continue;
                }
            };
            agreed = Some(since);
            if since.elapsed() > TTL + LOOK {
                let slots: u64 = counted.values().sum();
                self.progress.end();
                println!(
                    "after {:.0} s of calm the server counts exactly the {slots} leases of {} \
                     traces that the hosts hold, and did so for one TTL",
                    (since - start).as_secs_f64(),
                    counted.len(),
                );
                return Ok(());
            }
            self.tell_progress("calm");
            sleep(LOOK).await;
        }
    }

    /// The leases that the hosts hold, and the leases that the server counts, by trace.
    async fn compare(&mut self) -> anyhow::Result<(BTreeMap<String, u64>, BTreeMap<String, u64>)> {
        let mut held = BTreeMap::new();
        for host in &mut self.hosts {
            held.extend(host.tell(Command::Report).await?.holds.clone());
        }
        let server = self.server.as_ref().context("the server runs")?;
        Ok((held, Counts::of(server.address())?.by_trace().await?))
    }

    /// Closes every pool. After that the server holds nothing, also after a restart.
    async fn close(&mut self) -> anyhow::Result<()> {
        for host in self.hosts.drain(..).collect::<Vec<_>>() {
            self.toll.add(&host.last);
            host.close().await?;
        }
        for restarted in [false, true] {
            if restarted {
                self.kill_server();
                self.start_server().await?;
            }
            let server = self.server.as_ref().context("the server runs")?;
            let counted = Counts::of(server.address())?.by_trace().await?;
            ensure!(counted.is_empty(), "every pool is closed, and the server counts {counted:?}");
        }
        let Toll { weathers, cuts, server_kills, host_kills, granted, refused, .. } = self.toll;
        let Toll { unavailable, lost, .. } = self.toll;
        println!("then every pool was closed, and it counts nothing, before and after a restart");
        println!(
            "{granted} leases granted, {refused} refused, {unavailable} borrows without a server, \
             {lost} leases lost; {weathers} faults of the network, {cuts} resets, {server_kills} \
             kills of the server, {host_kills} of hosts"
        );
        let (mut connections, mut bytes) = (0, 0);
        for seen in self.proxies.iter().map(Proxy::seen) {
            connections += seen.connections;
            bytes += seen.from_clients + seen.from_server;
        }
        println!("{connections} connections through the fault proxies, {bytes} bytes");
        ensure!(granted > 100, "only {granted} leases were granted: that is no soak");
        Ok(())
    }
}

fn differences(held: &BTreeMap<String, u64>, counted: &BTreeMap<String, u64>) -> String {
    let mut lines = String::new();
    for trace in held.keys().chain(counted.keys().filter(|trace| !held.contains_key(*trace))) {
        let count = |of: &BTreeMap<String, u64>| of.get(trace).copied().unwrap_or(0);
        if count(held) != count(counted) {
            lines += &format!("  {trace}: {} held, {} counted\n", count(held), count(counted));
        }
    }
    lines
}
