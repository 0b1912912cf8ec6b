//! A PostgreSQL that a test starts on a free port, in a folder of its own.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A running database. It ends with this value.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    folder: tempfile::TempDir,
    /// Where it listens.
    addresses: String,
    pub port: u16,
    process: Option<Child>,
}

/// The folder of the newest installed version, if any is installed.
fn newest_installed() -> Option<PathBuf> {
    let installed = Path::new("/usr/lib/postgresql");
    let versions = std::fs::read_dir(installed).ok()?;
    let newest = versions
        .filter_map(|version| version.ok()?.file_name().into_string().ok()?.parse::<u32>().ok())
        .max()?;
    Some(installed.join(newest.to_string()).join("bin"))
}

/// The folder of the programs of PostgreSQL. Without them the test fails, or is skipped if
/// `scripts/test --allow-missing` allows that.
fn programs() -> Option<PathBuf> {
    let programs = newest_installed();
    if programs.is_none() {
        let allowed = std::env::var_os("TGM_SESSION_ALLOW_MISSING").is_some();
        assert!(
            allowed,
            "PostgreSQL is not installed: see scripts/test --install and --allow-missing"
        );
        eprintln!("left out: PostgreSQL is not installed");
    }
    programs
}

/// A command of PostgreSQL. It refuses to run as root, so root runs it as the user `postgres`.
fn command(programs: &Path, program: &str) -> Command {
    let program = programs.join(program);
    if !rustix::process::getuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// Gives a file or a folder to the user of the database.
fn own(path: &Path) {
    if rustix::process::getuid().is_root() {
        assert!(Command::new("chown").arg("postgres").arg(path).status().unwrap().success());
    }
}

impl Cluster {
    /// The database that the tests of this process share while one of them runs. Each uses a schema of
    /// its own.
    ///
    /// `None` where the test is skipped.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock();
        if let Some(cluster) = shared.upgrade() {
            return Some(cluster);
        }
        let cluster = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&cluster);
        Some(cluster)
    }

    /// A database of its own. `None` where the test is skipped.
    pub fn start() -> Option<Self> {
        Self::start_in(&std::env::temp_dir())
    }

    /// As [`Cluster::start`], with its data below a folder, which the user of the database may enter.
    pub fn start_in(folder: &Path) -> Option<Self> {
        let mut cluster = Self::without_data(folder)?;
        let made = command(&cluster.programs, "initdb")
            .args(["--username=tgm", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"])
            .arg("--pgdata")
            .arg(cluster.data())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        cluster.resume();
        Some(cluster)
    }

    fn without_data(folder: &Path) -> Option<Self> {
        let programs = programs()?;
        let folder = tempfile::tempdir_in(folder).unwrap();
        own(folder.path());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let addresses = "127.0.0.1".to_owned();
        Some(Self { programs, folder, addresses, port, process: None })
    }

    /// The URL of a store in it.
    pub fn url(&self) -> String {
        format!("postgres://tgm@127.0.0.1:{}/postgres", self.port)
    }

    /// The ids of its processes: of the first one, and of those that this one has started.
    pub fn processes(&self) -> Vec<u32> {
        let first = self.process.as_ref().map(rustix::process::Pid::from_child);
        let children = first.into_iter().flat_map(children_of);
        let processes = first.into_iter().chain(children);
        processes.map(|process| process.as_raw_nonzero().get().cast_unsigned()).collect()
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Writes a file of its data folder, which only the database may read.
    pub fn write(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;

        let path = self.data().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        own(&path);
    }

    /// Makes it listen at another address too, from its next start on, and let everybody in there.
    pub fn listen_at(&mut self, address: &str) {
        self.addresses = format!("{},{address}", self.addresses);
        self.write("pg_hba.conf", "host all all all trust\nhost replication all all trust\n");
    }

    /// Starts an asynchronous replica of this database.
    pub fn replica(&self) -> Self {
        let mut replica = Self::without_data(&std::env::temp_dir()).expect("this database runs");
        let copied = command(&self.programs, "pg_basebackup")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "tgm"])
            .args([
                "--write-recovery-conf",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--no-sync",
            ])
            .arg("-D")
            .arg(replica.data())
            .status()
            .unwrap();
        assert!(copied.success());
        replica.resume();
        replica
    }

    /// Makes a replica a primary.
    pub fn promote(&self) {
        let mut promote = command(&self.programs, "pg_ctl");
        promote.args(["promote", "--wait", "--silent", "-D"]).arg(self.data());
        assert!(promote.status().unwrap().success());
    }

    /// Starts it, or starts it again.
    pub fn resume(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let process = command(&self.programs, "postgres")
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string(), "-c"])
            .arg(format!("listen_addresses={}", self.addresses))
            .args(["-c", "unix_socket_directories=", "-c", "max_connections=50"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
        let deadline = Instant::now() + Duration::from_secs(60);
        let port = self.port.to_string();
        let is_ready = || {
            let mut ask = command(&self.programs, "pg_isready");
            ask.args(["-q", "-h", "127.0.0.1", "-p", &port]).status().unwrap().success()
        };
        while !is_ready() {
            assert!(Instant::now() < deadline, "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills each of its processes by SIGKILL, and waits until they are gone.
    pub fn kill_processes(&mut self) {
        if let Some(mut process) = self.process.take() {
            let children = children_of(rustix::process::Pid::from_child(&process));
            process.kill().unwrap();
            process.wait().unwrap();
            for child in children {
                // It may have ended by itself, because the first process is gone.
                let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
                while is_running(child) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Ends all its processes at once, without a checkpoint.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // The postmaster's children end when it is gone. SIGQUIT ends all at once.
            let pid = rustix::process::Pid::from_child(&process);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
            process.wait().unwrap();
        }
    }
}

/// The processes that this one has started.
fn children_of(parent: rustix::process::Pid) -> Vec<rustix::process::Pid> {
    let parent = parent.as_raw_nonzero().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid = entry.ok()?.file_name().into_string().ok()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of a program may have spaces and parentheses. Then its state and its parent follow.
        let (_, fields) = stat.rsplit_once(')')?;
        let is_child = fields.split_whitespace().nth(1)? == parent;
        is_child.then(|| rustix::process::Pid::from_raw(pid))?
    });
    processes.collect()
}

/// Whether a process runs, or waits to be looked at by its parent.
fn is_running(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z")))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill();
    }
}
