//! The whole benchmark: every part in one run, ours beside the reference.

use std::fs;

use anyhow::{Context as _, ensure};

use crate::report::Report;

mod alone;
mod bench;
mod callers;
mod fleet;
mod machine;
mod pool;
mod unary;

use bench::Bench;
pub use bench::{Options, Part};

/// Runs the benchmark, prints its tables and writes its JSON.
///
/// # Errors
///
/// A program is missing, a server does not start, or a call was not answered as it should be.
pub fn run(options: Options) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "the benchmark needs two cores, one for the server and one for the load");
    let bench = Bench::new(options)?;

    let mut report = Report::default();
    machine::describe(&mut report);
    if bench.wants(Part::Ledger) {
        alone::measure(&bench, &mut report)?;
    }
    if bench.wants(Part::Unary) {
        unary::measure(&bench, &mut report)?;
    }
    if bench.wants(Part::Callers) {
        callers::measure(&bench, &mut report)?;
    }
    if bench.wants(Part::Pool) {
        pool::measure(&bench, &mut report)?;
    }
    if bench.wants(Part::Fleet) {
        fleet::measure(&bench, &mut report)?;
    }
    println!("\n{}", report.goals());
    if let Some(path) = &bench.options.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
