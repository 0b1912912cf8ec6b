//! Runs the measurements of the ledger alone, each in its own process.

use crate::ledger::{Bytes, Speed};
use crate::report::{Bound, Cell, Report, Table};

use super::bench::{Bench, answer_of, counting, part};

/// The number of live sessions, and the goal for the speed of the ledger with them: its borrow and
/// return pairs for each pair of a bare hash map with a counter. A million is far more than the
/// caches of a core hold.
const OF_BARE_MAP: [(u32, f64); 3] = [(0, 0.12), (10_000, 0.15), (1_000_000, 0.18)];

/// Bytes per live lease.
const BYTES: f64 = 200.0;

/// Leases of the goal; the other row is just past the next doubling of every table, the worst case.
const LEASES: [&str; 2] = ["1000000", "1100000"];

pub(super) fn measure(bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Ledger alone, one core, no journal, 10,000 organizations, 18-byte ids, a trace per session",
        &["live sessions", "borrow+return/s", "a bare map/s", "of a bare map", "keep-alives/s"],
    );
    for (live, least) in OF_BARE_MAP {
        let mut command = part("ledger")?;
        command.args(["--live", &live.to_string(), "--seconds", bench.pick("0.5", "3")]);
        let speed: Speed = answer_of(command)?;
        let name = format!("ledger pairs, {live} sessions live, of a bare map");
        report.goal(name, speed.of_reference, 2, Bound::AtLeast(least));
        table.row([
            Cell::Number(f64::from(live), 0),
            Cell::Number(speed.pairs, 0),
            Cell::Number(speed.reference, 0),
            Cell::Number(speed.of_reference, 2),
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
