//! The database of a fleet in the demo: a PostgreSQL that it starts itself.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, getuid, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::failure::Failure;

/// How long the database may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where Debian has the programs of each version.
const INSTALLED: &str = "/usr/lib/postgresql";

/// A running database.
#[derive(Debug)]
pub(super) struct Database {
    port: u16,
    process: Child,
}

impl Database {
    /// Makes a database in the folder `home`, and starts it on a free port.
    pub(super) async fn start(home: &Path) -> Result<Self, Failure> {
        let programs = newest_installed().ok_or_else(|| {
            Failure::Failed(
                "PostgreSQL is not installed: the fleet needs it (Debian: apt install postgresql)"
                    .into(),
            )
        })?;
        let data = home.join("database");
        prepare(home, &data).await?;
        let made = command(&programs, "initdb")
            .args(["--username=tgm", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"])
            .arg("--pgdata")
            .arg(&data)
            .output()
            .await
            .map_err(|error| failed("run initdb", error))?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(failed("make a database", said.trim()));
        }
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.map_err(|error| failed("find a free port", error))?.port();
        let log = std::fs::File::create(home.join("database.log"));
        let log = log.map_err(|error| failed("write a log", error))?;
        let process = command(&programs, "postgres")
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories="])
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("start a database", error))?;
        let database = Self { port, process };
        database.wait_until_ready(&programs).await?;
        Ok(database)
    }

    async fn wait_until_ready(&self, programs: &Path) -> Result<(), Failure> {
        let started = Instant::now();
        let port = self.port.to_string();
        while started.elapsed() < PATIENCE {
            let mut ask = command(programs, "pg_isready");
            ask.args(["-q", "-h", "127.0.0.1", "-p", &port]);
            if ask.status().await.is_ok_and(|status| status.success()) {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(Failure::Failed("the database does not start in time".into()))
    }

    /// The URL of the store in it.
    pub(super) fn url(&self) -> String {
        format!("postgres://tgm@127.0.0.1:{}/postgres", self.port)
    }

    /// Ends it, and waits until it has.
    pub(super) async fn end(mut self) {
        let pid = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            // SIGINT ends it without waiting for its connections. It may have ended already.
            let _ = kill_process(pid, Signal::INT);
        }
        if timeout(PATIENCE, self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }
}

/// The folder of the programs of the newest version that is installed.
fn newest_installed() -> Option<PathBuf> {
    let versions = std::fs::read_dir(INSTALLED).ok()?;
    let numbers = versions
        .filter_map(|version| version.ok()?.file_name().into_string().ok()?.parse::<u32>().ok());
    let programs = Path::new(INSTALLED).join(numbers.max()?.to_string()).join("bin");
    programs.join("initdb").exists().then_some(programs)
}

/// A program of PostgreSQL. It refuses to run as root, so root runs it as the user `postgres`.
fn command(programs: &Path, program: &str) -> Command {
    let program = programs.join(program);
    if !getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Makes the folder of the data, for the user that runs the database.
async fn prepare(home: &Path, data: &Path) -> Result<(), Failure> {
    let unusable = |error| failed("make a folder", error);
    std::fs::create_dir(data).map_err(unusable)?;
    if !getuid().is_root() {
        return Ok(());
    }
    // The user `postgres` has to reach its folder.
    let passable = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(home, passable).map_err(unusable)?;
    let owned = Command::new("chown").arg("postgres").arg(data).status().await;
    match owned {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed("give a folder to the user postgres", status)),
        Err(error) => Err(failed("run chown", error)),
    }
}

fn failed(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("cannot {what}: {why}"))
}
