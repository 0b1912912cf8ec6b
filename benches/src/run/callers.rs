//! Borrow and return through the generated client, with few and with many callers.

use anyhow::Context as _;

use crate::pairs::{Latency, Measured};
use crate::report::{Cell, Report, Table};

use super::bench::{Bench, Rounds, Target, answer_of, micros_each, part};

const CALLERS: [u32; 3] = [1, 32, 256];

/// Latency is measured at this share of the highest rate.
const CALM: f64 = 0.5;

/// One run of the load generator against one server.
struct Outcome {
    measured: Measured,
    micros: f64,
}

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    for callers in CALLERS {
        let rounds = bench.pick(1, 3);
        let what = format!("borrow and return, {callers} callers");
        let outcomes = Rounds::run(&what, rounds, |target| one(bench, target, callers, None))?;
        show(report, callers, rounds, &outcomes);
    }
    steady(bench, report)
}

fn show(report: &mut Report, callers: u32, rounds: u32, outcomes: &Rounds<Outcome>) {
    let mut table = Table::new(
        format!(
            "Borrow, then return; callers: {callers}, in one process on the generated client; medians, rounds: {rounds}"
        ),
        &[
            "server",
            "pairs/s",
            "of reference",
            "CPU µs/pair",
            "of reference",
            "borrow p50 µs",
            "p99 µs",
            "return p50 µs",
            "p99 µs",
        ],
    );
    for target in Target::ALL {
        let each = |value| outcomes.median(target, value);
        table.row([
            target.name().into(),
            Cell::Number(each(|outcome| outcome.measured.pairs_per_second), 0),
            Cell::Number(
                outcomes.of_reference(target, |outcome| outcome.measured.pairs_per_second),
                2,
            ),
            Cell::Number(each(|outcome| outcome.micros), 2),
            Cell::Number(outcomes.of_reference(target, |outcome| outcome.micros), 2),
            Cell::Number(each(|outcome| outcome.measured.borrow.p50), 0),
            Cell::Number(each(|outcome| outcome.measured.borrow.p99), 0),
            Cell::Number(each(|outcome| outcome.measured.release.p50), 0),
            Cell::Number(each(|outcome| outcome.measured.release.p99), 0),
        ]);
    }
    report.table(table);
}

/// Latency at a rate that the server sustains, from when each borrow was due.
fn steady(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Latency of a borrow at half the highest rate of 256 callers, counted from when it was due",
        &["server", "pairs/s", "p50 µs", "p99 µs", "p99.9 µs", "max µs"],
    );
    for target in Target::ALL {
        eprintln!("latency at a steady rate, {}", target.name());
        let highest = one(bench, target, 256, None)?.measured.pairs_per_second;
        let Measured { pairs_per_second, borrow, .. } =
            one(bench, target, 256, Some(highest * CALM))?.measured;
        let Latency { p50, p99, p999, max } = borrow;
        table.row([
            target.name().into(),
            Cell::Number(pairs_per_second, 0),
            Cell::Number(p50, 0),
            Cell::Number(p99, 0),
            Cell::Number(p999, 0),
            Cell::Number(max, 0),
        ]);
    }
    report.table(table);
    Ok(())
}

/// One run against a fresh server.
fn one(bench: &Bench, target: Target, callers: u32, rate: Option<f64>) -> anyhow::Result<Outcome> {
    let server = bench.start(target)?;
    let mut command = part("pairs")?;
    command.args(["--address", &server.address().to_string()]);
    command.args(["--callers", &callers.to_string(), "--seconds", bench.pick("1", "3")]);
    if let Some(rate) = rate {
        command.args(["--rate", &rate.to_string()]);
    }
    if target == Target::Reference {
        command.arg("--reference");
    }
    let before = server.cpu()?;
    let measured: Measured =
        answer_of(command).with_context(|| format!("{callers} callers, {}", target.name()))?;
    let cpu = server.cpu()?.saturating_sub(before);
    let micros = micros_each(cpu, measured.pairs);
    Ok(Outcome { measured, micros })
}
