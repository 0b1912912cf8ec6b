//! Plays a fleet in virtual time, and tells which promise is broken.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use simulation::{STEPS_PER_SEED, Violation};

/// Plays a fleet in virtual time.
#[derive(Debug, Parser)]
struct Arguments {
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many steps are made: 100,000 with each seed.
    #[arg(long, default_value_t = 1_000_000)]
    steps: u64,
}

fn main() -> ExitCode {
    let Arguments { seed, steps } = Arguments::parse();
    let (mut seed, mut left, began) = (seed, steps, Instant::now());
    let mut total = simulation::Counts::default();
    while left > 0 {
        let now = left.min(STEPS_PER_SEED);
        match simulation::run(seed, now) {
            Ok(counts) => total.add(counts),
            Err(violation) => {
                let Violation { seed, step, what, events } = *violation;
                for event in events {
                    println!("{event}");
                }
                println!("seed {seed}, step {step}: {what}");
                return ExitCode::FAILURE;
            }
        }
        (seed, left) = (seed + 1, left - now);
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{steps} steps in {seconds:.1} s: {:.0} a second", steps as f64 / seconds);
    println!("{total:#?}");
    ExitCode::SUCCESS
}
