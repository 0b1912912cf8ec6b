//! The processes of the demo: a server and a client, both run this binary.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::demo::database::Database;
use crate::failure::Failure;

/// How long a process may take for one step.
const PATIENCE: Duration = Duration::from_secs(15);

/// The policy of the demo. Its times are short, so that the demo is short.
const POLICY: &str = r#"
[services.t1r]
max_per_organization = 4
ttl = "3s"
minimal_life = "0s"

[services.t2w]
max_per_organization = 12
ttl = "3s"
minimal_life = "0s"

[plans.pro]
limits = { t1r = 8, t2w = 24 }

[organizations.acme]
plan = "pro"

[organizations.cirrus]
limits = { t1r = 3 }
"#;

/// The TTL of that policy.
pub(super) const TTL: Duration = Duration::from_secs(3);

/// The TTL as it stands in the policy, and the one in a fleet. A stream that cannot be kept alive goes on
/// for that long.
const TTL_OF_POLICY: &str = "ttl = \"3s\"";
const TTL_IN_FLEET: &str = "ttl = \"20s\"";

/// The leader TTL in a fleet. The default is 5 s.
const LEADER_TTL: &str = "2s";

/// The child processes.
#[derive(Debug)]
pub(super) struct Processes {
    binary: PathBuf,
    home: PathBuf,
    server: Option<Process>,
    client: Option<Process>,
    /// The servers of a fleet, by the address of their gRPC port.
    fleet: BTreeMap<String, Process>,
    database: Option<Database>,
}

/// The addresses and the store of a started server.
#[derive(Clone, Debug)]
pub(super) struct Listening {
    pub(super) grpc: String,
    pub(super) admin: String,
    pub(super) store: String,
}

impl Processes {
    /// Prepares the processes, with their files in the folder `home`, which has to be empty.
    pub(super) fn new(home: &Path) -> Result<Self, Failure> {
        let binary = std::env::current_exe()
            .map_err(|error| Failure::Failed(format!("cannot find this program: {error}")))?;
        let processes = Self {
            binary,
            home: home.to_owned(),
            server: None,
            client: None,
            fleet: BTreeMap::new(),
            database: None,
        };
        processes.write_policy(POLICY)?;
        Ok(processes)
    }

    fn write_policy(&self, policy: &str) -> Result<(), Failure> {
        let file = self.policy();
        std::fs::write(&file, policy)
            .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", file.display())))
    }

    fn policy(&self) -> PathBuf {
        self.home.join("policy.toml")
    }

    /// Starts the server on `listen` and waits until it accepts. The store is always the same.
    pub(super) async fn start_server(&mut self, listen: &str) -> Result<Listening, Failure> {
        let mut store = OsString::from("file:");
        store.push(self.home.join("sessions.redb"));
        let (server, listening) = self.serve(listen, store, &[]).await?;
        self.server = Some(server);
        Ok(listening)
    }

    /// Starts a database for the servers of a fleet. Their leases live longer than a change of the leader
    /// takes.
    pub(super) async fn start_database(&mut self) -> Result<(), Failure> {
        self.write_policy(&POLICY.replace(TTL_OF_POLICY, TTL_IN_FLEET))?;
        self.database = Some(Database::start(&self.home).await?);
        Ok(())
    }

    /// Starts one more server of the fleet on the database, and waits until it accepts.
    pub(super) async fn start_in_fleet(&mut self) -> Result<Listening, Failure> {
        let database = self.database.as_ref();
        let url = database.map(Database::url).ok_or_else(|| missing("database"))?;
        let (server, listening) =
            self.serve("127.0.0.1:0", url.into(), &["--leader-ttl", LEADER_TTL]).await?;
        self.fleet.insert(listening.grpc.clone(), server);
        Ok(listening)
    }

    /// Kills the server of the fleet at that address with SIGKILL.
    pub(super) async fn kill_in_fleet(&mut self, address: &str) -> Result<(), Failure> {
        self.fleet.remove(address).ok_or_else(|| missing(address))?.kill().await
    }

    /// Asks the server of the fleet at that address to stop, and returns how it exited.
    pub(super) async fn stop_in_fleet(&mut self, address: &str) -> Result<ExitStatus, Failure> {
        self.fleet.remove(address).ok_or_else(|| missing(address))?.stop().await
    }

    /// Returns what `tgm-session fleet` prints at the server with this admin address.
    pub(super) async fn show_fleet(&self, admin: &str) -> Result<Value, Failure> {
        let mut command = self.command("fleet");
        command.args(["--admin", &format!("http://{admin}")]).kill_on_drop(true);
        let failed = |error| Failure::Failed(format!("cannot ask for the fleet: {error}"));
        let shown = timeout(PATIENCE, command.output()).await;
        let shown = shown.map_err(|_| Failure::Failed("the fleet is not shown in time".into()))?;
        let shown = shown.map_err(failed)?;
        serde_json::from_slice(&shown.stdout).map_err(|error| {
            let said = String::from_utf8_lossy(&shown.stderr);
            Failure::Failed(format!("the fleet cannot be read: {error}; {}", said.trim()))
        })
    }

    /// Starts a server on `listen` with that store, and waits until it accepts.
    async fn serve(
        &self,
        listen: &str,
        store: OsString,
        more: &[&str],
    ) -> Result<(Process, Listening), Failure> {
        let mut command = self.command("serve");
        command.arg("--config").arg(self.policy()).arg("--store").arg(store);
        command.args(["--listen", listen, "--admin-listen", "127.0.0.1:0"]).args(more);
        let mut server = Process::start(command, self.home.join("server.log"))?;
        let ready = server.event("ready").await?;
        let text = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        let listening =
            Listening { grpc: text("grpc"), admin: text("admin"), store: text("store") };
        Ok((server, listening))
    }

    /// Kills the server with SIGKILL: it cannot flush anything.
    pub(super) async fn kill_server(&mut self) -> Result<(), Failure> {
        running(&mut self.server)?.kill().await
    }

    /// Asks the server to stop, and returns how it exited.
    pub(super) async fn stop_server(&mut self) -> Result<ExitStatus, Failure> {
        running(&mut self.server)?.stop().await
    }

    /// Starts a client in a process of its own that holds one session and `workers` workers.
    pub(super) async fn start_client(
        &mut self,
        url: &str,
        organization: &str,
        workers: usize,
    ) -> Result<(), Failure> {
        let mut command = self.command("borrow");
        command.args([url, "--organization", organization, "--workers", &workers.to_string()]);
        let client = self.client.insert(Process::start(command, self.home.join("client.log"))?);
        client.event("holding").await?;
        Ok(())
    }

    /// Kills the client with SIGKILL: it cannot return anything.
    pub(super) async fn kill_client(&mut self) -> Result<(), Failure> {
        running(&mut self.client)?.kill().await
    }

    /// Kills whatever still runs, and waits until it is gone.
    pub(super) async fn end_all(&mut self) {
        let fleet = std::mem::take(&mut self.fleet).into_values();
        let others = [self.client.take(), self.server.take()].into_iter().flatten();
        for process in others.chain(fleet) {
            // A process that has ended already cannot be killed, which is fine.
            let _ = process.kill().await;
        }
        if let Some(database) = self.database.take() {
            database.end().await;
        }
    }

    /// A command that runs this binary without the variables of tgm-session.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.binary);
        for (variable, _) in std::env::vars_os() {
            if variable.as_encoded_bytes().starts_with(b"TGM_SESSION_") {
                command.env_remove(variable);
            }
        }
        command.args([name, "--format", "json"]);
        command
    }
}

fn missing(what: &str) -> Failure {
    Failure::Failed(format!("{what} of the demo does not run"))
}

fn running(process: &mut Option<Process>) -> Result<Process, Failure> {
    process.take().ok_or_else(|| Failure::Failed("a process of the demo does not run".into()))
}

/// A child process that prints its events as lines of JSON.
#[derive(Debug)]
struct Process {
    child: Child,
    /// Stays open until the process ends: a closed pipe may stop it.
    events: Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: PathBuf) -> Result<Self, Failure> {
        let failed = |error| Failure::Failed(format!("cannot start a process: {error}"));
        let errors = OpenOptions::new().create(true).append(true).open(&log).map_err(failed)?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            // A group of its own: Ctrl-C reaches this process only, which then ends the others.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child.stdout.take().expect("the output was asked for");
        Ok(Self { child, events: BufReader::new(stdout).lines(), log })
    }

    /// Waits for the event called `name` and returns it.
    async fn event(&mut self, name: &str) -> Result<Value, Failure> {
        let found = timeout(PATIENCE, async {
            while let Ok(Some(line)) = self.events.next_line().await {
                match serde_json::from_str::<Value>(&line) {
                    Ok(event) if event["event"] == name => return Some(event),
                    _ => {}
                }
            }
            None
        });
        match found.await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => Err(self.failure(&format!("a process ended before it was {name}"))),
            Err(_) => Err(self.failure(&format!("a process was not {name} in time"))),
        }
    }

    /// The error `what`, with the last line of the log.
    fn failure(&self, what: &str) -> Failure {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("the log is empty").to_owned();
        Failure::Failed(format!("{what}: {last}"))
    }

    async fn kill(mut self) -> Result<(), Failure> {
        self.child
            .kill()
            .await
            .map_err(|error| Failure::Failed(format!("cannot kill a process: {error}")))
    }

    async fn stop(mut self) -> Result<ExitStatus, Failure> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)
                .map_err(|error| Failure::Failed(format!("cannot stop a process: {error}")))?;
        }
        match timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error)) => Err(Failure::Failed(format!("cannot wait for a process: {error}"))),
            Err(_) => Err(self.failure("a process did not stop in time")),
        }
    }
}
