//! The result of one attack, and whether it passed.

use std::fmt;

use benches::report::{Cell, Table};
use serde::Serialize;

use crate::bystander::Seen;
use crate::options::Store;
use crate::watch::{PROBE_LIMIT, Probes};

/// The longest wait of 99 of 100 calls of the well-behaved client, in milliseconds.
pub(crate) const WAIT_MS: f64 = 100.0;

/// The longest that a fresh connection with 200 calls at once may take, in milliseconds.
pub(crate) const RECONNECT_MS: f64 = 500.0;

/// If the client is woken later than this, the machine was busy and its waits do not count against the server.
const LATE_MS: f64 = 20.0;

/// Bytes as megabytes of 2^20.
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The result of one attack on one store.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) attack: &'static str,
    pub(crate) store: String,
    /// Seconds from the end of its preparation to its end.
    pub(crate) seconds: f64,
    /// Seconds in total, including the start, the checks and the stop of the server.
    pub(crate) total_seconds: f64,
    /// What the raw connections sent.
    pub(crate) sent_mb: f64,
    /// The peak of the server's resident memory, and the most that it may be.
    pub(crate) peak_mb: f64,
    pub(crate) most_mb: f64,
    /// Resident memory once the attack was over.
    pub(crate) after_mb: f64,
    /// How long after the attack the server had recovered; `None` if that took more than 2 s.
    pub(crate) recovered_ms: Option<f64>,
    /// The slowest answer of `/healthz`.
    pub(crate) probe_ms: f64,
    /// What the well-behaved client saw.
    pub(crate) client: Seen,
    /// Why it failed.
    pub(crate) faults: Vec<String>,
    /// Remarks.
    pub(crate) notes: Vec<String>,
}

impl Row {
    /// The row of an attack that has not begun.
    pub(crate) fn new(attack: &'static str, store: Store) -> Self {
        Self { attack, store: store.to_string(), ..Self::default() }
    }

    /// Whether the attack found no fault.
    pub(crate) const fn passed(&self) -> bool {
        self.faults.is_empty()
    }

    /// Whether the attack failed and another try may pass, because the machine was busy. In the
    /// short form a failure always gets another try: that form is too short to tell.
    pub(crate) fn is_worth_another_try(&self, is_short: bool) -> bool {
        !self.passed() && (is_short || self.client.late_ms > LATE_MS)
    }

    /// Adds a fault for each figure beyond its bound. The short form runs with the tests, on busy machines:
    /// its waits are reported and not judged.
    pub(crate) fn judge(&mut self, probes: &Probes, is_short: bool) {
        let Self { peak_mb, most_mb, ref client, .. } = *self;
        let (mut faults, mut waits) = (Vec::new(), Vec::new());
        if peak_mb > most_mb {
            faults.push(format!("resident memory was {peak_mb:.0} MB, and may be {most_mb:.0}"));
        }
        let Seen { calls, p99_ms, worst_ms, reconnect_ms, failed, lost, ref problems, .. } =
            *client;
        if p99_ms > WAIT_MS {
            waits.push(format!(
                "the well-behaved client waited {p99_ms:.0} ms at the 99th percentile of {calls} \
                 calls, {worst_ms:.0} ms at worst; it may be {WAIT_MS:.0}"
            ));
        }
        if reconnect_ms > RECONNECT_MS {
            waits.push(format!(
                "a fresh connection of the well-behaved client and 200 calls at once on it took \
                 {reconnect_ms:.0} ms, and may take {RECONNECT_MS:.0}"
            ));
        }
        let list = if is_short { &mut self.notes } else { &mut faults };
        list.append(&mut waits);
        if calls == 0 {
            faults.push("the well-behaved client got no answer at all".into());
        }
        if failed > 0 {
            let problems = problems.join("; ");
            faults.push(format!("{failed} calls of the well-behaved client failed: {problems}"));
        }
        if lost > 0 {
            faults.push(format!("{lost} sessions that were kept alive are gone"));
        }
        let limit = PROBE_LIMIT.as_millis();
        match probes {
            Probes { asked: 0, .. } => faults.push("/healthz was never answered".into()),
            Probes { asked, failed: failed @ 1.., problem, .. } => faults.push(format!(
                "/healthz failed {failed} of {asked} times, within {limit} ms: {}",
                problem.as_deref().unwrap_or_default()
            )),
            _ => {}
        }
        self.faults.extend(faults);
        if client.late_ms > LATE_MS {
            self.notes.push(format!(
                "the machine was busy: the well-behaved client was woken {:.0} ms late at the 99th \
                 percentile",
                client.late_ms
            ));
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed() { "pass" } else { "FAIL" };
        let Seen { p99_ms, worst_ms, lost, failed, .. } = self.client;
        write!(
            f,
            "{verdict}  {:<22} {:<8} {:>5.0} MB peak, client p99 {p99_ms:.1} ms, worst {worst_ms:.0} \
             ms, {failed} failed, {lost} lost",
            self.attack, self.store, self.peak_mb
        )?;
        for fault in &self.faults {
            write!(f, "\n      {fault}")?;
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n      ({note})"))
    }
}

/// All rows as one table.
pub(crate) fn table(rows: &[Row]) -> Table {
    let passed = rows.iter().filter(|row| row.passed()).count();
    let title = format!("{passed} of {} attacks passed", rows.len());
    let mut table = Table::new(
        title,
        &[
            "attack",
            "store",
            "seconds",
            "sent MB",
            "peak MB",
            "may be",
            "after MB",
            "client p50 ms",
            "p99 ms",
            "worst ms",
            "reconnect ms",
            "failed",
            "lost",
            "late ms",
            "probe ms",
            "as before ms",
            "verdict",
        ],
    );
    for row in rows {
        let Seen { p50_ms, p99_ms, worst_ms, reconnect_ms, late_ms, failed, lost, .. } = row.client;
        table.row([
            row.attack.into(),
            row.store.as_str().into(),
            Cell::Number(row.seconds, 1),
            Cell::Number(row.sent_mb, 0),
            Cell::Number(row.peak_mb, 0),
            Cell::Number(row.most_mb, 0),
            Cell::Number(row.after_mb, 0),
            Cell::Number(p50_ms, 1),
            Cell::Number(p99_ms, 1),
            Cell::Number(worst_ms, 0),
            Cell::Number(reconnect_ms, 0),
            Cell::Number(failed as f64, 0),
            Cell::Number(lost as f64, 0),
            Cell::Number(late_ms, 0),
            Cell::Number(row.probe_ms, 0),
            row.recovered_ms.map_or(Cell::Empty, |millis| Cell::Number(millis, 0)),
            if row.passed() { "pass" } else { "FAIL" }.into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A row of an attack without effect on the client.
    fn good() -> (Row, Probes) {
        let mut row = Row::new("none", Store::Memory);
        (row.peak_mb, row.most_mb) = (100.0, 512.0);
        row.client = Seen { calls: 10, p99_ms: WAIT_MS, ..Seen::default() };
        (row, Probes { asked: 3, worst: Duration::from_millis(5), ..Probes::default() })
    }

    #[test]
    fn an_attack_within_all_bounds_passes() {
        let (mut row, probes) = good();
        row.judge(&probes, false);
        assert_eq!(row.faults, [""; 0]);
    }

    #[test]
    fn each_figure_beyond_its_bound_is_one_fault_that_says_both() {
        let (mut row, mut probes) = good();
        (row.peak_mb, row.client.p99_ms, row.client.worst_ms) = (600.0, 101.0, 900.0);
        (row.client.failed, row.client.lost, row.client.reconnect_ms) = (2, 1, 501.0);
        row.client.problems = vec!["a borrow: Unavailable: full".into()];
        (probes.failed, probes.problem) = (1, Some("no answer".into()));
        row.judge(&probes, false);
        assert_eq!(
            row.faults,
            [
                "resident memory was 600 MB, and may be 512",
                "the well-behaved client waited 101 ms at the 99th percentile of 10 calls, 900 ms at \
                 worst; it may be 100",
                "a fresh connection of the well-behaved client and 200 calls at once on it took 501 ms, \
                 and may take 500",
                "2 calls of the well-behaved client failed: a borrow: Unavailable: full",
                "1 sessions that were kept alive are gone",
                "/healthz failed 1 of 3 times, within 1000 ms: no answer",
            ]
        );
        assert!(!row.passed());
    }

    #[test]
    fn the_short_form_notes_a_long_wait_without_a_fault() {
        let (mut row, probes) = good();
        row.client.p99_ms = 2.0 * WAIT_MS;
        row.judge(&probes, true);
        assert!(row.passed() && row.notes.len() == 1, "{row}");
    }

    #[test]
    fn a_client_or_a_probe_that_nobody_answered_is_a_fault() {
        let (mut row, _) = good();
        row.client = Seen::default();
        row.judge(&Probes::default(), false);
        assert_eq!(
            row.faults,
            ["the well-behaved client got no answer at all", "/healthz was never answered"]
        );
    }
}
