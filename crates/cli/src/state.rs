//! `state`: the leases of one organization, as the server counts them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use tgm_session::{Dsn, PoolState};

use crate::bar::Bar;
use crate::failure::Failure;
use crate::output::{FAINT, Output, TITLE, plain, styled};
use crate::remote::Remote;
use crate::runtime;

const ABOUT: &str = "\
  tgm-session state 'tgm://127.0.0.1:9010?plaintext=true' --organization acme
  tgm-session state 'tgm://HOST?indexer-api-key=$KEY' --organization acme \\
        --service t2w --format json";

/// Show how full the pool of an organization is, and which traces hold leases.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The session URL of the server: tgm://HOST:PORT?PARAMETERS.
    url: String,

    /// The organization.
    #[arg(long, value_name = "ID")]
    organization: String,

    /// The service, as the server's policy names it.
    #[arg(long, value_name = "NAME", default_value = "t1r")]
    service: String,
}

/// One pool, as it is printed.
#[derive(Debug, Serialize)]
struct PoolReport {
    service: String,
    organization: String,
    active: u64,
    max: Option<u64>,
    available: Option<u64>,
    active_traces: u64,
    traces: BTreeMap<String, u64>,
}

impl fmt::Display for PoolReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bar = Bar { active: self.active, max: self.max };
        let name = plain(&format!("{} {}", self.organization, self.service));
        write!(f, "{}  {bar}", styled(TITLE, name))?;
        if let Some(available) = self.available {
            write!(f, ", {available} free")?;
        }
        let traces: Vec<_> = self.traces.iter().map(|(trace, held)| (plain(trace), held)).collect();
        let width = traces.iter().map(|(trace, _)| trace.chars().count()).max().unwrap_or(0).max(5);
        if !traces.is_empty() {
            let heading = format!("{:<width$}  leases", "trace");
            write!(f, "\n{}", styled(FAINT, heading))?;
        }
        for (trace, leases) in traces {
            write!(f, "\n{trace:<width$}  {leases:>6}")?;
        }
        Ok(())
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, mut output: Output) -> Result<(), Failure> {
    let dsn = Dsn::parse(&args.url)?;
    // The URL may contain the value of a variable, so errors do not repeat it.
    match dsn.scheme() {
        "tgm" => {}
        "local" => {
            let problem = "local:// counts in one process, so there is no server to ask; give a tgm:// \
                           URL";
            return Err(Failure::Usage(problem.into()));
        }
        _ => {
            let problem = "this is no session URL; give tgm://HOST:PORT of the gRPC port (the \
                           admin port is asked by sessions, organizations and top)";
            return Err(Failure::Usage(problem.into()));
        }
    }
    let runtime = runtime::current_thread()?;
    output.show_live(&"asking the server…")?;
    let state = runtime.block_on(async {
        let remote = Remote::new(&dsn)?;
        let state = remote.pool.state(&args.service, &args.organization).await;
        state.map_err(|error| remote.failure(error))
    });
    runtime.shutdown_background();
    output.clear_live()?;
    let PoolState { borrowed, max, available, active_traces, per_trace, .. } = state?;
    output.show(&PoolReport {
        service: args.service,
        organization: args.organization,
        active: borrowed,
        max,
        available,
        active_traces,
        traces: per_trace,
    })
}
