//! What organizations have used, as they report it.

use std::sync::Arc;

use compact_str::CompactString;
use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::budget::{Budget, BudgetSpent, Period, Used, WallTime};
use crate::change::Change;
use crate::clock::Timestamp;
use crate::memory::{Bound, Memory};
use crate::policy::Policy;
use crate::records::{Record, Records};
use crate::report::{Amount, MAX_METRICS, Report, Skipped, Uncountable};

/// How long an idempotency key is remembered.
const REPORT_MEMORY: std::time::Duration = std::time::Duration::from_secs(600);

/// How many counts one report checks, to forget those of windows long past.
const LOOK_AT_ONCE: usize = 16;

/// How many counts are checked to find one that makes room.
const LOOK_FOR_ROOM: usize = 64;

/// How much a [`UsageBook`] holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UsageBounds {
    /// Most counts; those of budgets always fit.
    pub(crate) counts: usize,
    /// Most counts that one indexer caused for organizations that the policy does not know.
    pub(crate) unknown_counts: usize,
    /// Most idempotency keys of one indexer.
    pub(crate) report_keys: usize,
}

/// What an organization used of one metric.
#[derive(Debug)]
struct Count {
    organization: CompactString,
    metric: CompactString,
    used: Used,
    /// The indexer that caused it, while the policy does not know the organization.
    charged: Option<u32>,
}

impl Record for Count {
    // The metric is left out, so that the counts of an organization are found in one probe.
    type Key<'a> = &'a str;

    fn key(&self) -> &str {
        &self.organization
    }
}

/// How far a report has come.
#[derive(Debug)]
struct Reported {
    key: Box<str>,
    /// `None` from a version that kept none, which counted reports whole.
    fingerprint: Option<u64>,
    applied: u64,
}

impl Record for Reported {
    type Key<'a> = &'a str;

    fn key(&self) -> &str {
        &self.key
    }
}

/// Usage counts by organization and metric, and the reports they come from.
#[derive(Debug)]
pub(crate) struct UsageBook {
    counts: Records<Count>,
    bounds: UsageBounds,
    /// How many counts each indexer is charged with.
    charged: HashMap<u32, usize, FixedState>,
    /// The next count to check for a window long past.
    next_look: u32,
    /// The next count to check for room.
    next_room: u32,
    reports: Memory<Reported>,
}

/// Which part of a report to count, and for whom.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) policy: &'a dyn Policy,
    /// Whether an organization holds a lease. With the policy it decides which counts have room.
    pub(crate) holds_leases: &'a dyn Fn(&str) -> bool,
    /// The wall clock, which the windows of budgets follow.
    pub(crate) wall: WallTime,
    /// The indexer that reports.
    pub(crate) indexer: u32,
    /// The first amount to count.
    pub(crate) from: usize,
    /// Most amounts to count.
    pub(crate) most: usize,
}

/// What was counted of one part of a report.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    /// The amount to go on with; past the last one the report is counted whole.
    pub(crate) next: usize,
    /// Whether the report had been counted whole before.
    pub(crate) repeated: bool,
    /// At least how many events are among what did not fit.
    pub(crate) skipped: Skipped,
    /// The organizations of which this part spent a budget.
    pub(crate) spent: Vec<Box<str>>,
}

impl UsageBook {
    pub(crate) fn new(bounds: UsageBounds, hasher: &FixedState) -> Self {
        Self {
            counts: Records::new(hasher),
            bounds,
            charged: HashMap::with_hasher(hasher.clone()),
            next_look: 0,
            next_room: 0,
            reports: Memory::new(Bound::Each(bounds.report_keys), hasher),
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
            if past {
                changes.extend(self.forget(at));
            }
        }
        changes
    }

    fn forget(&mut self, at: u32) -> Option<Change> {
        self.uncharge(at);
        let Count { organization, metric, .. } = self.counts.remove(at)?;
        let (organization, metric) = (organization.as_str().into(), metric.as_str().into());
        Some(Change::Unused { organization, metric })
    }

    /// Takes a count off those that an indexer is charged with.
    fn uncharge(&mut self, at: u32) {
        let Some(count) = self.counts.get(at) else { return };
        let Some(indexer) = count.charged else { return };
        self.counts[at].charged = None;
        if let Some(charged) = self.charged.get_mut(&indexer) {
            *charged -= 1;
            if *charged == 0 {
                self.charged.remove(&indexer);
            }
        }
    }

    /// The amount to go on with, of a report under that key.
    ///
    /// The error is how many keys the indexer may have, where it has as many, and nothing when the
    /// key names another report.
    pub(crate) fn resume(
        &mut self,
        indexer: u32,
        key: &str,
        report: &Report,
        now: Timestamp,
    ) -> Result<usize, Option<u64>> {
        match self.reports.get(indexer, key, now) {
            Some(Reported { fingerprint: None, .. }) => Ok(report.len()),
            Some(Reported { fingerprint: Some(known), applied, .. }) => {
                let same = *known == report.fingerprint();
                same.then(|| usize::try_from(*applied).unwrap_or(usize::MAX)).ok_or(None)
            }
            // A report that counts nothing need not be remembered.
            None if report.is_empty() => Ok(0),
            None => self.reports.check_room(indexer, now).map(|()| 0).map_err(Some),
        }
    }

    /// Remembers how far a report has come.
    pub(crate) fn reported(
        &mut self,
        indexer: u32,
        name: Option<Box<str>>,
        (key, fingerprint, applied): (&str, u64, usize),
        now: Timestamp,
    ) -> Change {
        let applied = applied as u64;
        let until = match self.reports.find(indexer, key, now) {
            Some(at) => {
                self.reports.at_mut(at).applied = applied;
                self.reports.at(at).map_or(now, |fact| fact.until)
            }
            None => {
                let until = now + REPORT_MEMORY;
                let fingerprint = Some(fingerprint);
                let reported = Reported { key: key.into(), fingerprint, applied };
                self.reports.remember(indexer, reported, until);
                until
            }
        };
        let (indexer, key, fingerprint) = (name, key.into(), Some(fingerprint));
        Change::Reported { indexer, key, until, fingerprint, applied }
    }

    /// Counts the next amounts of a report and adds what changed to `changes`.
    pub(crate) fn count(
        &mut self,
        report: &Report,
        part: &Part<'_>,
        changes: &mut Vec<Change>,
    ) -> Counted {
        let Part { policy, wall, from, most, .. } = *part;
        let all = report.amounts();
        let repeated = from >= all.len() && !all.is_empty();
        let next = from.saturating_add(most).min(all.len());
        let mut counted = Counted { next, repeated, ..Counted::default() };
        let amounts = all.get(from..next).unwrap_or_default();
        changes.reserve(amounts.len() + 1);
        for amounts in amounts.chunk_by(|a, b| Arc::ptr_eq(&a.organization, &b.organization)) {
            let organization = &amounts[0].organization;
            let budgets = policy.budgets(organization);
            let was_spent = self.spent(organization, budgets, wall).is_some();
            // Most events carry the same metrics: what is skipped of several is of the same events.
            let mut skipped = [0; Uncountable::ALL.len()];
            for amount in amounts {
                match self.count_one(part, budgets, amount, changes) {
                    Ok(used) => {
                        used.add(amount.value, wall);
                        changes.push(Change::Used {
                            organization: (**organization).into(),
                            metric: (*amount.metric).into(),
                            used: *used,
                        });
                    }
                    Err(why) => {
                        let events = &mut skipped[why as usize];
                        *events = u64::from(amount.events).max(*events);
                    }
                }
            }
            counted.skipped.iter_mut().zip(skipped).for_each(|(sum, events)| *sum += events);
            if !was_spent && self.spent(organization, budgets, wall).is_some() {
                counted.spent.push((**organization).into());
            }
        }
        counted
    }

    /// The count that an amount is added to, from zero if there was none; or why there is none.
    fn count_one(
        &mut self,
        part: &Part<'_>,
        budgets: &[Budget],
        amount: &Amount,
        changes: &mut Vec<Change>,
    ) -> Result<&mut Used, Uncountable> {
        let (organization, metric) = (&*amount.organization, &*amount.metric);
        let knows = part.policy.knows(organization);
        if let Some(at) = self.find(organization, metric) {
            if knows {
                self.uncharge(at);
            }
            return Ok(&mut self.counts[at].used);
        }
        if !budgets.iter().any(|budget| *budget.metric == *metric) {
            if self.counts.all(organization).count() >= MAX_METRICS {
                return Err(Uncountable::TooManyMetrics);
            }
            changes.extend(self.make_room(part, organization, knows)?);
        }
        let charged = (!knows).then_some(part.indexer);
        if let Some(indexer) = charged {
            *self.charged.entry(indexer).or_insert(0) += 1;
        }
        let at = self.counts.insert(Count {
            organization: organization.into(),
            metric: metric.into(),
            used: Used::default(),
            charged,
        });
        Ok(&mut self.counts[at].used)
    }

    /// Makes room for one more count, and answers the count that was removed for it.
    ///
    /// Counts of organizations that neither the policy knows nor any lease go first. A
    /// report of an unknown organization that holds no lease removes no count.
    fn make_room(
        &mut self,
        part: &Part<'_>,
        organization: &str,
        knows: bool,
    ) -> Result<Option<Change>, Uncountable> {
        let charged = self.charged.get(&part.indexer).copied().unwrap_or(0);
        let own = !knows && charged >= self.bounds.unknown_counts;
        if !own && self.counts.len() < self.bounds.counts {
            return Ok(None);
        }
        if !knows && !(part.holds_leases)(organization) {
            return Err(Uncountable::NoRoom);
        }
        let of = own.then_some(part.indexer);
        for _ in 0..LOOK_FOR_ROOM.min(self.counts.end() as usize) {
            let at = self.next_room;
            self.next_room = if at + 1 < self.counts.end() { at + 1 } else { 0 };
            let Some(count) = self.counts.get(at) else { continue };
            if of.is_some() && count.charged != of {
                continue;
            }
            let other = &count.organization;
            if !part.policy.knows(other) && !(part.holds_leases)(other) {
                return Ok(self.forget(at));
            }
        }
        Err(Uncountable::NoRoom)
    }

    fn find(&self, organization: &str, metric: &str) -> Option<u32> {
        self.counts.all(organization).find(|&at| self.counts[at].metric == metric)
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
            budget.is_spent_by(used).then(|| BudgetSpent {
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

    /// The counts of one part of the records, by organization and metric.
    pub(crate) fn part(&self, part: u32) -> Option<impl Iterator<Item = (&str, &str, Used)>> {
        let counts = self.counts.part(part)?;
        Some(counts.map(|(_, count)| (&*count.organization, &*count.metric, count.used)))
    }

    /// Whether idempotency keys that are past at `now` are still here.
    pub(crate) fn has_past(&self, now: Timestamp) -> bool {
        self.reports.has_past(now)
    }

    /// Forgets at most so many idempotency keys that are past at `now`.
    pub(crate) fn expire(&mut self, now: Timestamp, most: usize) {
        self.reports.expire(now, most);
    }

    /// Restores a count. Stores do not keep which indexer caused it, so it is charged to none.
    pub(crate) fn restore_used(&mut self, organization: &str, metric: &str, used: Used) {
        if let Some(at) = self.find(organization, metric) {
            self.counts[at].used = used;
            return;
        }
        let (organization, metric) = (organization.into(), metric.into());
        self.counts.insert(Count { organization, metric, used, charged: None });
    }

    pub(crate) fn restore_reported(
        &mut self,
        indexer: u32,
        key: Box<str>,
        until: Timestamp,
        fingerprint: Option<u64>,
        applied: u64,
    ) {
        self.reports.remember(indexer, Reported { key, fingerprint, applied }, until);
    }

    pub(crate) fn snapshot(
        &self,
        name: impl Fn(u32) -> Option<Box<str>>,
    ) -> impl Iterator<Item = Change> {
        let used = self.counts.iter().map(|(_, count)| Change::Used {
            organization: count.organization.as_str().into(),
            metric: count.metric.as_str().into(),
            used: count.used,
        });
        used.chain(self.reports.iter().map(move |fact| Change::Reported {
            indexer: name(fact.indexer),
            key: fact.what.key.clone(),
            until: fact.until,
            fingerprint: fact.what.fingerprint,
            applied: fact.what.applied,
        }))
    }
}
