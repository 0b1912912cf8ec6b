//! The faults that `scripts/faults` builds and starts: three real servers on a real PostgreSQL, callers
//! with the client library, and a history that is checked against the promises of a fleet.

mod callers;
mod history;
mod play;
mod policy;
mod report;
mod stage;
mod transactions;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use benches::fleet::Setup;
use benches::fleet::network::{self, DATABASE, Network};
use clap::{Parser, Subcommand};
use store::testing::cluster::Cluster;
use tokio::runtime::Handle;

use crate::play::{FAULTS, Fault};
use crate::report::Report;
use crate::stage::{Scale, Stage};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Plays faults on a fleet of session servers and checks what it promises
#[derive(Debug, Parser)]
#[command(name = "tgm-session-faults")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Play faults
    Run(Options),
    /// Run callers: their history is on standard output
    Callers(callers::Options),
}

#[derive(Debug, clap::Args)]
struct Options {
    /// The server: tgm-session
    #[arg(long, value_name = "PROGRAM", default_value = "tgm-session")]
    server: PathBuf,
    /// Where logs are made
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
    /// The rounds of each fault
    #[arg(long, default_value_t = 50)]
    rounds: u32,
    /// One round of each fault, all on one fleet
    #[arg(long)]
    quick: bool,
    /// List the faults and play none
    #[arg(long)]
    list: bool,
    /// Only these faults
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

fn main() -> ExitCode {
    let played = match Arguments::parse().part {
        Part::Run(options) => play(&options),
        Part::Callers(options) => callers::run(&options).map(|()| true),
    };
    match played {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Plays the faults, and returns whether all promises were kept.
fn play(options: &Options) -> anyhow::Result<bool> {
    if options.list {
        for Fault { name, about, .. } in FAULTS {
            println!("{name:<12}{about}");
        }
        return Ok(true);
    }
    for name in &options.names {
        let is_known = FAULTS.iter().any(|fault| fault.name == name);
        ensure!(is_known, "no fault is called {name}; --list tells them");
    }
    let is_named = |fault: &&Fault| {
        options.names.is_empty() || options.names.iter().any(|name| name == fault.name)
    };
    let mut faults: Vec<&Fault> = FAULTS.iter().filter(is_named).collect();
    if faults.iter().any(|fault| fault.cuts)
        && let Err(error) = network::enter()
    {
        // As the tests that need PostgreSQL.
        if std::env::var_os("TGM_SESSION_ALLOW_MISSING").is_none() {
            return Err(error);
        }
        eprintln!("left out: {error:#}");
        faults.retain(|fault| !fault.cuts);
    }
    // Calls are made on the worker. This thread blocks.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let folder = tempfile::Builder::new()
        .prefix("faults-")
        .tempdir_in(&options.folder)
        .with_context(|| format!("no folder can be made in {}", options.folder.display()))?;
    let together = if options.quick { faults.len().max(1) } else { 1 };
    let mut passed = true;
    for (number, faults) in faults.chunks(together).enumerate() {
        let folder = folder.path().join(number.to_string());
        std::fs::create_dir(&folder)?;
        match play_together(faults, options, &folder, runtime.handle()) {
            Ok(all_passed) => passed &= all_passed,
            Err(error) => {
                let names: Vec<_> = faults.iter().map(|fault| fault.name).collect();
                println!("{}: FAILED; {error:#}", names.join(", "));
                passed = false;
            }
        }
    }
    if !passed {
        println!("logs: {}", folder.keep().display());
    }
    Ok(passed)
}

/// Plays these faults one after another on one fleet.
fn play_together(
    faults: &[&Fault],
    options: &Options,
    folder: &Path,
    runtime: &Handle,
) -> anyhow::Result<bool> {
    let seconds = Duration::from_secs;
    let (ttl, leader_ttl, attached) = if options.quick {
        (seconds(9), seconds(1), 200)
    } else {
        (seconds(15), seconds(2), 1_000)
    };
    let attached = if faults.iter().any(|fault| fault.attached) { attached } else { 0 };
    let mut cluster = Cluster::start().context("PostgreSQL is not installed")?;
    let (mut network, mut database) = (None, "127.0.0.1");
    if faults.iter().any(|fault| fault.cuts) {
        (network, database) = (Some(Network::make(folder)?), DATABASE);
        cluster.kill();
        cluster.listen_at(DATABASE);
        cluster.resume();
    }
    let setup = Setup {
        program: options.server.clone(),
        folder: folder.to_owned(),
        policy: policy::policy(ttl),
        leader_ttl,
        store: format!("postgres://tgm@{database}:{}/postgres", cluster.port),
        network,
        arguments: Vec::new(),
    };
    let scale = Scale { callers: 64, attached, ttl, leader_ttl };
    let mut stage = Stage::start(setup, cluster, scale, runtime)?;
    let mut passed = true;
    for fault in faults {
        let rounds = if options.quick { 1 } else { options.rounds.min(fault.most) };
        let mut report = Report { name: fault.name, ..Report::default() };
        stage.history.lock().begin(fault.strictness);
        let mut played = Ok(());
        let began = Instant::now();
        while played.is_ok() && report.rounds < rounds && report.violations.is_empty() {
            played = (fault.round)(&mut stage, &mut report);
            report.rounds += 1;
            let mut history = stage.history.lock();
            report.violations.append(&mut history.violations);
        }
        let history = stage.history.lock();
        report.took = began.elapsed();
        report.calls = history.calls;
        report.failures.clone_from(&history.failures);
        drop(history);
        print!("{report}");
        passed &= report.violations.is_empty();
        played.with_context(|| format!("{} in round {}", fault.name, report.rounds))?;
    }
    let left = stage.finish()?;
    left.iter().for_each(|violation| print!("{violation}"));
    println!("nothing is left one TTL and a second after the callers: {}", left.is_empty());
    Ok(passed && left.is_empty())
}
