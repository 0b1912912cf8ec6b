//! The attacks that `scripts/attack` builds and starts: attacking callers, a well-behaved client, and a real
//! server. Each attack is judged by the waits of that client and the memory of the server.

mod attacks;
mod bystander;
mod calls;
mod connection;
mod frames;
mod load;
mod options;
mod row;
mod server;
mod stage;
mod watch;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use benches::http;
use clap::Parser;
use rustix::process::{Resource, getrlimit, nice, setrlimit};
use serde_json::json;

use crate::attacks::ATTACKS;
use crate::options::{Options, Store, Stores};
use crate::stage::Attack;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The niceness of the attack, so that the server and the well-behaved client on the same machine go first.
const NICENESS: i32 = 10;

/// How often an attack is tried that fails while the machine is busy.
const TRIES: usize = 3;

fn main() -> ExitCode {
    match play(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Makes the attacks, and returns whether all of them passed.
fn play(options: &Options) -> anyhow::Result<bool> {
    if options.list {
        for Attack { name, about, .. } in ATTACKS {
            println!("{name:<24}{about}");
        }
        return Ok(true);
    }
    for name in &options.names {
        if !ATTACKS.iter().any(|attack| attack.name == name) {
            bail!("no attack is called {name}; --list tells them");
        }
    }
    let folder = tempfile::Builder::new()
        .prefix("attack-")
        .tempdir_in(&options.folder)
        .with_context(|| format!("no folder can be made in {}", options.folder.display()))?;
    raise_open_files()?;
    // The raw connections run on the one worker. The server is started from this thread, which has the usual
    // niceness, because a process inherits that of its parent thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .on_thread_start(|| {
            // If this fails, the attack takes more CPU time from the server and the well-behaved
            // client.
            let _ = nice(NICENESS);
        })
        .enable_all()
        .build()?;
    let mut rows = Vec::new();
    for attack in ATTACKS {
        for store in stores_of(attack, options) {
            let mut row = None;
            for _ in 0..TRIES {
                let ran = runtime.block_on(stage::run(attack, store, options, folder.path()));
                let ran = ran.with_context(|| format!("{} on {store}", attack.name))?;
                println!("{ran}");
                if !row.insert(ran).is_worth_another_try(options.quick) {
                    break;
                }
            }
            let row = row.context("an attack is made at least once")?;
            rows.push(row);
        }
    }
    println!("\n{}", row::table(&rows));
    let passed = rows.iter().all(row::Row::passed);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&json!({ "passed": passed, "attacks": rows }))?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !passed {
        let kept = folder.keep();
        println!("logs of the servers: {}", kept.display());
    }
    Ok(passed)
}

/// The stores that `attack` is made on.
fn stores_of(attack: &Attack, options: &Options) -> Vec<Store> {
    let named = options.names.is_empty() || options.names.iter().any(|name| name == attack.name);
    let wanted = match (options.store, options.quick) {
        (Stores::Memory, _) => vec![Store::Memory],
        (Stores::File, _) => vec![Store::File],
        (Stores::Both, true) => match attack.quick_on {
            Some(store) => vec![store],
            None if options.names.is_empty() => vec![],
            None => vec![Store::Memory],
        },
        (Stores::Both, false) => vec![Store::Memory, Store::File],
    };
    let possible = |store: &Store| named && (attack.on_memory || *store == Store::File);
    wanted.into_iter().filter(possible).collect()
}

/// Lets this process, and the server it starts, have as many connections open as the system permits.
fn raise_open_files() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}
