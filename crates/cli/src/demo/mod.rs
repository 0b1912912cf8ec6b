//! `demo`: a real server, real clients and real crashes. Each step is checked.

mod database;
mod fleet;
mod narrator;
mod play;
mod pools;
mod processes;

use std::time::{Duration, Instant};

use crate::demo::narrator::Narrator;
use crate::demo::pools::Pools;
use crate::demo::processes::Processes;
use crate::failure::Failure;
use crate::output::Output;
use crate::runtime;
use crate::signals::Signals;

const ABOUT: &str = "\
Starts a server on free ports, with a durable store in a temporary folder, and
uses it: three organizations stream, workers run under a session, a borrow is
refused, a client is killed, the server is killed and restarted, everything is
returned. Nothing is simulated, and every step is checked. The first check that
fails ends the demo with exit code 1.

  tgm-session demo
  tgm-session demo --fleet
      three servers on a PostgreSQL that the demo starts: the leader is killed,
      another one is stopped, and the streams go on
  tgm-session demo --format json
      every scene, pool and check as one line of JSON";

/// Longer than the whole demo takes. A demo that hangs has failed.
const DEADLINE: Duration = Duration::from_secs(120);

/// Show how it works in 10 seconds: a real server, three organizations, a crash and a restart.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// Play three servers on one PostgreSQL, of which the leader is killed
    #[arg(long)]
    fleet: bool,
}

/// Plays the demo. Leaves no process and no file behind, even when it fails.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    let runtime = runtime::current_thread()?;
    let home = tempfile::Builder::new()
        .prefix("tgm-session-demo-")
        .tempdir()
        .map_err(|error| Failure::Failed(format!("cannot make a temporary folder: {error}")))?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::take_with_hangup()?;
        let mut narrator = Narrator::new(output);
        let mut processes = Processes::new(home.path())?;
        let started = Instant::now();
        let mut pools = Pools::default();
        let outcome = tokio::select! {
            outcome = async {
                if args.fleet {
                    fleet::play(&mut narrator, &mut processes, &mut pools).await
                } else {
                    play::play(&mut narrator, &mut processes, &mut pools).await
                }
            } => outcome,
            name = signals.next() => Err(Failure::Failed(format!("stopped by {name}"))),
            () = tokio::time::sleep(DEADLINE) => {
                Err(Failure::Failed(format!("the demo hung in scene {}", narrator.scene())))
            }
        };
        pools.close().await;
        processes.end_all().await;
        match outcome {
            Ok(()) => narrator.finish(started.elapsed()),
            Err(failure) => {
                narrator.abort();
                Err(failure)
            }
        }
    });
    // Tasks of the pools may still retry returns. They must not outlive the demo.
    runtime.shutdown_background();
    let left = home.path().to_owned();
    let removed = home.close().map_err(|error| {
        Failure::Failed(format!("cannot remove the temporary folder {}: {error}", left.display()))
    });
    outcome.and(removed)
}
