//! What is printed of a fault.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What was measured while a fault was played.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) rounds: u32,
    /// How long all rounds took.
    pub(crate) took: Duration,
    pub(crate) failovers: u64,
    /// The times to the next grant, by what was at fault.
    pub(crate) grants: BTreeMap<&'static str, Vec<Duration>>,
    /// What else was counted.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    pub(crate) calls: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, rounds, failovers, calls, .. } = self;
        let seconds = self.took.as_secs();
        let verdict = if self.violations.is_empty() { "passed" } else { "FAILED" };
        writeln!(
            f,
            "{name}: {verdict}; {rounds} rounds in {seconds} s, {failovers} failovers, {calls} calls"
        )?;
        for (what, times) in &self.grants {
            let mut times = times.clone();
            times.sort_unstable();
            let at = |place: usize| times.get(place).map_or(0, Duration::as_millis);
            let (middle, last) = (times.len() / 2, times.len().saturating_sub(1));
            let (least, median, most) = (at(0), at(middle), at(last));
            writeln!(
                f,
                "  next grant, {what:<10} min {least} ms, median {median} ms, max {most} ms"
            )?;
        }
        self.counts.iter().try_for_each(|(what, count)| writeln!(f, "  {what}: {count}"))?;
        let failures = self.failures.iter().map(|(kind, count)| format!("{kind} {count}"));
        let failures: Vec<_> = failures.collect();
        match &failures[..] {
            [] => writeln!(f, "  no call failed")?,
            _ => writeln!(f, "  failed: {}", failures.join(", "))?,
        }
        self.violations.iter().try_for_each(|violation| f.write_str(violation))
    }
}
