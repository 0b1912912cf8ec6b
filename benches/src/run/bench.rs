//! Shared by all parts of the benchmark: options, servers, and programs to run.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::process::{LOAD_CORE, SERVER_CORE, Server, pinned};
use crate::report::median;

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Single calls from h2load, and durable borrows
    Unary,
    /// Borrow and return with 1, 32 and 256 callers
    Callers,
    /// The ledger alone: speed and memory
    Ledger,
    /// The pool of the client library: 300,000 leases held, and what it adds to a call
    Pool,
    /// A fleet on a database: durable borrows, calls passed on, failovers, and what one leader reaches
    Fleet,
}

/// How the benchmark is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The server to measure: a release build of tgm-session
    #[arg(long, value_name = "PROGRAM")]
    pub server: PathBuf,
    /// Where file: stores are made; their disk is what durability is measured on
    #[arg(long, value_name = "FOLDER")]
    pub folder: PathBuf,
    /// A short run: less exact, the same tables
    #[arg(long)]
    pub quick: bool,
    /// Write everything that was measured to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// How long a leader of the part `fleet` may be silent, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub leader_ttl: u64,
    /// Run these parts only
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
}

/// The servers that are measured, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Reference,
    Memory,
    File,
}

impl Target {
    pub(super) const ALL: [Self; 3] = [Self::Reference, Self::Memory, Self::File];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Reference => "reference",
            Self::Memory => "memory:",
            Self::File => "file:",
        }
    }
}

/// The results of every target, by round.
pub(super) struct Rounds<T>([Vec<T>; 3]);

impl<T> Rounds<T> {
    /// Runs `one` against every target once a round. The servers take turns, so that a slow moment of the
    /// machine hits all of them.
    pub(super) fn run(
        what: &str,
        rounds: u32,
        one: impl Fn(Target) -> anyhow::Result<T>,
    ) -> anyhow::Result<Self> {
        let mut outcomes: [Vec<T>; 3] = Default::default();
        for round in 1..=rounds {
            eprintln!("{what}, round {round}/{rounds}");
            for (target, outcomes) in Target::ALL.into_iter().zip(&mut outcomes) {
                outcomes.push(one(target)?);
            }
        }
        Ok(Self(outcomes))
    }

    /// The median of a figure of `target`.
    pub(super) fn median(&self, target: Target, value: fn(&T) -> f64) -> f64 {
        median(self.0[target as usize].iter().map(value).collect())
    }

    /// The median ratio of a figure of `target` to that of the reference in the same round, because
    /// the speed of the machine may change between rounds.
    pub(super) fn of_reference(&self, target: Target, value: fn(&T) -> f64) -> f64 {
        let pairs = self.0[target as usize].iter().zip(&self.0[0]);
        median(pairs.map(|(ours, reference)| value(ours) / value(reference)).collect())
    }
}

/// Shared by all parts.
pub(super) struct Bench {
    pub(super) options: Options,
    pub(super) folder: TempDir,
    pub(super) policy: PathBuf,
}

/// No limits, and a TTL longer than any run.
pub(super) const POLICY: &str =
    "[server]\nmax_leases = 20_000_000\n\n[services.t1r]\nttl = \"1h\"\n";

impl Bench {
    /// Makes the folder and the policy that servers are started with.
    pub(super) fn new(options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("bench-")
            // The user of a database enters it.
            .permissions(Permissions::from_mode(0o711))
            .tempdir_in(&options.folder)
            .with_context(|| format!("no folder can be made in {}", options.folder.display()))?;
        let policy = folder.path().join("policy.toml");
        fs::write(&policy, POLICY).with_context(|| format!("cannot write {}", policy.display()))?;
        Ok(Self { options, folder, policy })
    }

    pub(super) fn wants(&self, part: Part) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&part)
    }

    /// The first of a short run, the second of a full one.
    pub(super) fn pick<T>(&self, quick: T, full: T) -> T {
        if self.options.quick { quick } else { full }
    }

    /// Starts a fresh `target` on the server core.
    pub(super) fn start(&self, target: Target) -> anyhow::Result<Server> {
        self.start_on(target, SERVER_CORE)
    }

    /// Starts a fresh `target` on `cores`, with an empty store.
    pub(super) fn start_on(&self, target: Target, cores: &str) -> anyhow::Result<Server> {
        self.start_with(target, &self.policy, cores)
    }

    /// As [`Bench::start_on`], with another policy.
    pub(super) fn start_with(
        &self,
        target: Target,
        policy: &Path,
        cores: &str,
    ) -> anyhow::Result<Server> {
        match target {
            Target::Reference => {
                let mut command = pinned(cores, &std::env::current_exe()?);
                command.arg("reference");
                Server::start(command, Some(&self.log()))
            }
            Target::Memory => self.start_store("memory:", policy, cores),
            Target::File => self.start_store(&self.fresh_file()?, policy, cores),
        }
    }

    /// Starts a server on this store.
    pub(super) fn start_store(
        &self,
        store: &str,
        policy: &Path,
        cores: &str,
    ) -> anyhow::Result<Server> {
        let mut command = pinned(cores, &self.options.server);
        command.args(["serve", "--format", "json", "--allow-anonymous", "--config"]);
        command.arg(policy);
        command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(["--store", store]);
        Server::start(command, Some(&self.log()))
    }

    /// The URL of an empty file store.
    pub(super) fn fresh_file(&self) -> anyhow::Result<String> {
        let store = self.folder.path().join("leases");
        clear(&store)?;
        Ok(format!("file:{}", store.display()))
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }
}

/// Removes the store of the run before.
fn clear(store: &Path) -> anyhow::Result<()> {
    let removed = if store.is_dir() { fs::remove_dir_all(store) } else { fs::remove_file(store) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", store.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `command` to its end and reads the JSON it prints.
pub(super) fn answer_of<T: DeserializeOwned>(mut command: Command) -> anyhow::Result<T> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {errors}");
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{command:?} answered in an unknown form"))
}

/// This program again, with `part` as its subcommand, on the load core.
pub(super) fn part(part: &str) -> anyhow::Result<Command> {
    let mut command = pinned(LOAD_CORE, &std::env::current_exe()?);
    command.arg(part);
    Ok(command)
}

/// The program that counts its allocations, with `part` as its subcommand, on the load core.
pub(super) fn counting(part: &str) -> anyhow::Result<Command> {
    let program = std::env::current_exe()?.with_file_name("tgm-session-bench-memory");
    let mut command = pinned(LOAD_CORE, &program);
    command.arg(part);
    Ok(command)
}

/// CPU time per operation, in microseconds.
pub(super) fn micros_each(cpu: Duration, operations: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / operations as f64
}
