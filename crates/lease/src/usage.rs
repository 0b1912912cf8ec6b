//! What organizations have used, as they report it.

use compact_str::CompactString;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::budget::{Budget, BudgetSpent, Period, Usage, Used, WallTime};
use crate::change::Change;
use crate::memory::Memory;
use crate::records::{Record, Records};
use crate::types::{Invalid, Timestamp, validate_id};

/// How long an idempotency key is remembered.
const REPORT_MEMORY: std::time::Duration = std::time::Duration::from_secs(600);

/// Most idempotency keys remembered at once; the oldest are forgotten first.
const MAX_REPORT_KEYS: usize = 1_000_000;

/// Most metrics of one organization.
const MAX_METRICS: usize = 64;

/// Most counts (organization, metric) at once.
const MAX_COUNTS: usize = 1_000_000;

/// Counts that one report looks at, to forget those of windows long past.
const LOOK_AT_ONCE: usize = 16;

/// What an organization used of one metric.
#[derive(Debug)]
struct Count {
    organization: CompactString,
    metric: CompactString,
    used: Used,
}

impl Record for Count {
    // The metric is left out, so that the counts of an organization are found in one probe.
    type Key<'a> = &'a str;

    fn key(&self) -> &str {
        &self.organization
    }
}

/// Usage counts by organization and metric, and the reports they come from.
#[derive(Debug)]
pub(crate) struct UsageBook {
    counts: Records<Count>,
    max_counts: usize,
    /// Where to look next for counts of windows long past.
    next_look: u32,
    reports: Memory<(Option<Box<str>>, Box<str>), ()>,
    hasher: FixedState,
}

impl UsageBook {
    pub(crate) fn new(hasher: &FixedState) -> Self {
        Self {
            counts: Records::new(hasher),
            max_counts: MAX_COUNTS,
            next_look: 0,
            reports: Memory::new(MAX_REPORT_KEYS, hasher),
            hasher: hasher.clone(),
        }
    }

    /// Looks at the next few counts and forgets those of windows long past; answers the changes.
    ///
    /// Long is a whole month, so a wall clock that is set back a little finds its counts.
    pub(crate) fn forget_past(&mut self, wall: WallTime) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..LOOK_AT_ONCE.min(self.counts.len()) {
            let at = self.next_look;
            self.next_look = if at + 1 < self.counts.end() { at + 1 } else { 0 };
            let past = self.counts.get(at).is_some_and(|count| {
                Period::Month.window(wall) > count.used.month.0.saturating_add(1)
            });
            if let Some(Count { organization, metric, .. }) =
                past.then(|| self.counts.remove(at)).flatten()
            {
                let (organization, metric) = (organization.as_str().into(), metric.as_str().into());
                changes.push(Change::Unused { organization, metric });
            }
        }
        changes
    }

    /// Counts a report, and answers what changed: nothing for a report seen before.
    pub(crate) fn report(
        &mut self,
        caller: Option<&str>,
        idempotency_key: Option<&str>,
        usages: &[Usage<'_>],
        wall: WallTime,
        now: Timestamp,
    ) -> Result<Vec<Change>, Invalid> {
        self.validate(idempotency_key, usages)?;
        let mut changes = Vec::with_capacity(usages.len() + 1);
        if let Some(key) = idempotency_key {
            let report: (Option<Box<str>>, Box<str>) = (caller.map(Into::into), key.into());
            if self.reports.get(&report).is_some() {
                return Ok(changes);
            }
            let until = now + REPORT_MEMORY;
            let (indexer, key) = report.clone();
            changes.push(Change::Reported { indexer, key, until });
            self.reports.insert(report, (), until);
        }
        for usage in usages {
            let used = self.count(usage.organization, usage.metric);
            used.add(usage.value, wall);
            changes.push(Change::Used {
                organization: usage.organization.into(),
                metric: usage.metric.into(),
                used: *used,
            });
        }
        Ok(changes)
    }

    /// The counts of a metric, from zero if there were none.
    fn count(&mut self, organization: &str, metric: &str) -> &mut Used {
        let at = match self.find(organization, metric) {
            Some(at) => at,
            None => self.counts.insert(Count {
                organization: organization.into(),
                metric: metric.into(),
                used: Used::default(),
            }),
        };
        &mut self.counts[at].used
    }

    fn find(&self, organization: &str, metric: &str) -> Option<u32> {
        self.counts.all(organization).find(|&at| self.counts[at].metric == metric)
    }

    fn validate(&self, idempotency_key: Option<&str>, usages: &[Usage<'_>]) -> Result<(), Invalid> {
        if let Some(key) = idempotency_key {
            validate_id("x-idempotency-key", key, true)?;
        }
        let mut metrics: HashMap<&str, Vec<&str>, FixedState> =
            HashMap::with_hasher(self.hasher.clone());
        let mut counts = self.counts.len();
        for usage in usages {
            validate_id("organization_id", usage.organization, true)?;
            validate_id("metrics.key", usage.metric, true)?;
            if !usage.value.is_finite() || usage.value < 0.0 {
                return Err(Invalid {
                    field: "metrics.value",
                    problem: "is negative or not finite",
                });
            }
            let known = metrics
                .entry(usage.organization)
                .or_insert_with(|| self.of(usage.organization).map(|(metric, _)| metric).collect());
            if !known.contains(&usage.metric) {
                known.push(usage.metric);
                counts += 1;
            }
            if known.len() > MAX_METRICS {
                let problem = "is the 65th metric of its organization";
                return Err(Invalid { field: "metrics.key", problem });
            }
            if counts > self.max_counts {
                let problem = "is one more than the server counts the usage of";
                return Err(Invalid { field: "organization_id", problem });
            }
        }
        Ok(())
    }

    pub(crate) fn spent(
        &self,
        organization: &str,
        budgets: &[Budget],
        wall: WallTime,
    ) -> Option<BudgetSpent> {
        budgets.iter().find_map(|budget| {
            let at = self.find(organization, &budget.metric);
            let used = at.map(|at| self.counts[at].used).unwrap_or_default();
            let (window, used) = used.in_window(budget.per, wall);
            (used >= budget.amount).then(|| BudgetSpent {
                metric: budget.metric.clone(),
                used,
                amount: budget.amount,
                per: budget.per,
                resets_at: budget.per.end(window),
            })
        })
    }

    /// The counts of an organization by metric.
    pub(crate) fn of<'a>(&'a self, organization: &'a str) -> impl Iterator<Item = (&'a str, Used)> {
        self.counts.all(organization).map(|at| {
            let Count { metric, used, .. } = &self.counts[at];
            (&**metric, *used)
        })
    }

    /// The counts of one part, as [`Records::part`] cuts them, by organization and metric.
    pub(crate) fn part(&self, part: u32) -> Option<impl Iterator<Item = (&str, &str, Used)>> {
        let counts = self.counts.part(part)?;
        Some(counts.map(|(_, count)| (&*count.organization, &*count.metric, count.used)))
    }

    pub(crate) fn expire(&mut self, now: Timestamp) {
        self.reports.expire(now);
    }

    pub(crate) fn restore_used(&mut self, organization: &str, metric: &str, used: Used) {
        *self.count(organization, metric) = used;
    }

    pub(crate) fn restore_reported(
        &mut self,
        indexer: Option<Box<str>>,
        key: Box<str>,
        until: Timestamp,
    ) {
        self.reports.insert((indexer, key), (), until);
    }

    pub(crate) fn snapshot(&self) -> impl Iterator<Item = Change> {
        let used = self.counts.iter().map(|(_, count)| Change::Used {
            organization: count.organization.as_str().into(),
            metric: count.metric.as_str().into(),
            used: count.used,
        });
        used.chain(self.reports.iter().map(|((indexer, key), (), until)| Change::Reported {
            indexer: indexer.clone(),
            key: key.clone(),
            until,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_that_would_be_too_much_to_count_counts_nothing() {
        let wall = WallTime::from_unix(1_800_000_000);
        let usages = ["a", "b", "c", "d"].map(|organization| Usage {
            organization,
            metric: "egress_bytes",
            value: 1.0,
        });
        let mut book = UsageBook { max_counts: 3, ..UsageBook::new(&FixedState::with_seed(1)) };
        let report = |book: &mut UsageBook, usages: &[Usage<'_>]| {
            book.report(None, None, usages, wall, Timestamp::ZERO).map(|changes| changes.len())
        };
        let refused = report(&mut book, &usages).unwrap_err();
        assert_eq!((refused.field, book.counts.len()), ("organization_id", 0));
        assert_eq!(report(&mut book, &usages[..3]), Ok(3));
        assert_eq!(report(&mut book, &usages[3..]), Err(refused));
        // What is known goes on being counted.
        assert_eq!(report(&mut book, &usages[..3]), Ok(3));
        assert_eq!(book.of("b").map(|(_, used)| used.month.1).sum::<f64>(), 2.0);
        // A month that is long past makes room.
        let later = WallTime::from_unix(1_800_000_000 + 70 * 86_400);
        assert_eq!(book.forget_past(later).len(), 3);
        assert_eq!(report(&mut book, &usages[3..]), Ok(1));
    }
}
