//! What organizations have used, as they report it.

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::budget::{Budget, BudgetSpent, Usage, Used, WallTime};
use crate::change::Change;
use crate::memory::Memory;
use crate::types::{Invalid, Timestamp, validate_id};

/// How long an idempotency key is remembered.
const REPORT_MEMORY: std::time::Duration = std::time::Duration::from_secs(600);

/// Most idempotency keys remembered at once; the oldest are forgotten first.
const MAX_REPORT_KEYS: usize = 1_000_000;

/// Most metrics of one organization.
const MAX_METRICS: usize = 64;

/// Usage counts by organization and metric, and the reports they come from.
#[derive(Debug)]
pub(crate) struct UsageBook {
    counts: HashMap<Box<str>, HashMap<Box<str>, Used, FixedState>, FixedState>,
    reports: Memory<(Option<Box<str>>, Box<str>), ()>,
    hasher: FixedState,
}

impl UsageBook {
    pub(crate) fn new(hasher: &FixedState) -> Self {
        Self {
            counts: HashMap::with_hasher(hasher.clone()),
            reports: Memory::new(MAX_REPORT_KEYS, hasher),
            hasher: hasher.clone(),
        }
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
            let metrics = self
                .counts
                .entry(usage.organization.into())
                .or_insert_with(|| HashMap::with_hasher(self.hasher.clone()));
            let used = metrics.entry(usage.metric.into()).or_default();
            used.add(usage.value, wall);
            changes.push(Change::Used {
                organization: usage.organization.into(),
                metric: usage.metric.into(),
                used: *used,
            });
        }
        Ok(changes)
    }

    fn validate(&self, idempotency_key: Option<&str>, usages: &[Usage<'_>]) -> Result<(), Invalid> {
        if let Some(key) = idempotency_key {
            validate_id("x-idempotency-key", key, true)?;
        }
        let mut metrics: HashMap<&str, Vec<&str>, FixedState> =
            HashMap::with_hasher(self.hasher.clone());
        for usage in usages {
            validate_id("organization_id", usage.organization, true)?;
            validate_id("metrics.key", usage.metric, true)?;
            if !usage.value.is_finite() || usage.value < 0.0 {
                return Err(Invalid {
                    field: "metrics.value",
                    problem: "is negative or not finite",
                });
            }
            let known = metrics.entry(usage.organization).or_insert_with(|| {
                let counted = self.counts.get(usage.organization);
                counted.into_iter().flat_map(|counted| counted.keys().map(|key| &**key)).collect()
            });
            if !known.contains(&usage.metric) {
                known.push(usage.metric);
            }
            if known.len() > MAX_METRICS {
                let problem = "is the 65th metric of its organization";
                return Err(Invalid { field: "metrics.key", problem });
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
        if budgets.is_empty() {
            return None;
        }
        let counts = self.counts.get(organization);
        budgets.iter().find_map(|budget| {
            let used = counts.and_then(|metrics| metrics.get(&*budget.metric)).copied();
            let (window, used) = used.unwrap_or_default().in_window(budget.per, wall);
            (used >= budget.amount).then(|| BudgetSpent {
                metric: budget.metric.clone(),
                used,
                amount: budget.amount,
                per: budget.per,
                resets_at: budget.per.end(window),
            })
        })
    }

    pub(crate) fn expire(&mut self, now: Timestamp) {
        self.reports.expire(now);
    }

    pub(crate) fn restore_used(&mut self, organization: Box<str>, metric: Box<str>, used: Used) {
        let metrics = self.counts.entry(organization);
        metrics.or_insert_with(|| HashMap::with_hasher(self.hasher.clone())).insert(metric, used);
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
        let used = self.counts.iter().flat_map(|(organization, metrics)| {
            metrics.iter().map(move |(metric, used)| Change::Used {
                organization: organization.clone(),
                metric: metric.clone(),
                used: *used,
            })
        });
        used.chain(self.reports.iter().map(|((indexer, key), (), until)| Change::Reported {
            indexer: indexer.clone(),
            key: key.clone(),
            until,
        }))
    }
}
