//! The ledger alone, in processes of their own.

use crate::ledger::{Bytes, Speed};
use crate::report::{Bound, Cell, Report, Table};

use super::bench::{Bench, answer_of, counting, part};

/// Borrow and return pairs per second on one core.
const PAIRS: f64 = 3_000_000.0;

/// Bytes per live lease.
const BYTES: f64 = 200.0;

/// Leases of the goal; the other row is just past the next doubling of every table, the worst case.
const LEASES: [&str; 2] = ["1000000", "1100000"];

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Ledger alone, one core, no journal, 10,000 organizations, 18-byte ids, a trace per session",
        &["live sessions", "borrow+return/s", "keep-alives/s"],
    );
    for live in [0_u32, 10_000, 1_000_000] {
        let mut command = part("ledger")?;
        command.args(["--live", &live.to_string(), "--seconds", bench.pick("0.5", "3")]);
        let speed: Speed = answer_of(command)?;
        if live <= 10_000 {
            let name = format!("ledger pairs per second, {live} sessions live");
            report.goal(name, speed.pairs, 0, Bound::AtLeast(PAIRS));
        }
        table.row([
            Cell::Number(f64::from(live), 0),
            Cell::Number(speed.pairs, 0),
            speed.keep_alives.map_or(Cell::Empty, |rate| Cell::Number(rate, 0)),
        ]);
    }
    report.table(table);

    let mut table = Table::new(
        "Memory of the ledger, every allocation counted",
        &["live sessions", "bytes each", "bytes each with borrow ids"],
    );
    for leases in LEASES {
        let mut command = counting("ledger")?;
        command.arg(leases);
        let bytes: Bytes = answer_of(command)?;
        if leases == LEASES[0] {
            report.goal("bytes per live lease at 1,000,000", bytes.each, 0, Bound::AtMost(BYTES));
        }
        table.row([
            Cell::Number(bytes.leases as f64, 0),
            Cell::Number(bytes.each, 0),
            Cell::Number(bytes.with_borrow_id, 0),
        ]);
    }
    report.table(table);
    Ok(())
}
