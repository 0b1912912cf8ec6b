//! Reports of usage, counted part by part with the lock free in between.

use std::sync::Arc;

use lease::{RECORDS_PER_HOLD, Submission, WallTime};
use tokio::runtime::Handle;

use super::SPENT_TOLD;
use super::revoking::Revoking;
use super::shared::{Part, Shared, Wait, newest};
use crate::store::{ReportError, Reported, Unavailable, UsageReport};

/// A report on its way into the ledger.
#[derive(Debug)]
pub(super) struct Reporting {
    shared: Arc<Shared>,
    report: UsageReport,
    wall: WallTime,
    /// The first amount that is not counted yet.
    next: usize,
    is_counted: bool,
    /// The organizations of which a budget was spent by it, while their leases live.
    spent: Vec<Arc<str>>,
    /// How far the end of those leases has come.
    revoking: Option<Revoking>,
    /// The first organization that the answer does not tell about yet.
    look_at: usize,
    reported: Reported,
    /// The last batch that the answer depends on.
    wait: Wait,
}

impl Reporting {
    pub(super) fn new(shared: Arc<Shared>, report: UsageReport) -> Self {
        let wall = shared.clock.wall();
        Self {
            shared,
            report,
            wall,
            next: 0,
            is_counted: false,
            spent: Vec::new(),
            revoking: None,
            look_at: 0,
            reported: Reported::default(),
            wait: None,
        }
    }

    /// Whether nothing is left to do.
    pub(super) fn is_done(&self) -> bool {
        self.is_counted
            && self.spent.is_empty()
            && (self.look_at >= self.report.organizations.len()
                || self.reported.spent.len() >= SPENT_TOLD)
    }

    /// Whether what is left is little enough to be done where calls are served.
    pub(super) fn is_short(&self) -> bool {
        self.report.report.len() <= RECORDS_PER_HOLD
            && self.spent.is_empty()
            && self.report.organizations.len() <= RECORDS_PER_HOLD
    }

    /// What came of it, and what the answer has to wait for.
    pub(super) fn finish(self) -> (Reported, Wait) {
        (self.reported, self.wait)
    }

    /// Does all that is left. Blocks: where too much waits for the disk, it waits for that, since
    /// half a report is of no use to anybody.
    pub(super) fn run(mut self) -> Result<(Reported, Wait), ReportError> {
        while !self.is_done() {
            if let Some(batch) = self.shared.busy() {
                Handle::current().block_on(batch.settled())?;
            }
            match self.step() {
                Err(ReportError::Unavailable(Unavailable::Overloaded)) => {
                    if let Some(batch) = self.shared.gathering() {
                        Handle::current().block_on(batch.settled())?;
                    }
                }
                done => done?,
            }
        }
        Ok(self.finish())
    }

    /// Takes the lock once.
    pub(super) fn step(&mut self) -> Result<(), ReportError> {
        let wait = if !self.is_counted {
            self.count()?
        } else if !self.spent.is_empty() {
            self.revoke()?
        } else {
            self.tell()?
        };
        // Batches become durable in their order: the last one is enough.
        self.wait = wait;
        Ok(())
    }

    fn count(&mut self) -> Result<Wait, ReportError> {
        let UsageReport { caller, idempotency_key, report, policy: own, .. } = &self.report;
        let (from, wall) = (self.next, self.wall);
        let amounts = (report.len() - from).min(RECORDS_PER_HOLD);
        let (counted, wait) =
            self.shared.count(caller.as_deref(), amounts, |ledger, now, policy| {
                let submission = Submission {
                    caller: caller.as_deref(),
                    idempotency_key: idempotency_key.as_deref(),
                    report,
                    // Another policy may have come into force since the report was read.
                    accounts: newest(own, policy),
                    wall,
                };
                ledger.report(&submission, from, now)
            })?;
        let counted = counted?;
        self.reported.counted |= !counted.repeated;
        self.reported.skipped.iter_mut().zip(counted.skipped).for_each(|(sum, more)| *sum += more);
        self.spent.extend(counted.spent);
        self.next = counted.next;
        self.is_counted = self.next >= report.len();
        Ok(wait)
    }

    /// Ends some of the leases of organizations that have spent a budget.
    fn revoke(&mut self) -> Result<Wait, ReportError> {
        let (spent, policy) = (&mut self.spent, &self.report.policy);
        let revoking = self.revoking.get_or_insert_with(|| {
            let names = spent.iter().map(|name| Box::from(&**name)).collect();
            Revoking::of((**policy).clone(), names)
        });
        match revoking.step(&self.shared)? {
            Part::Busy(_) => Err(Unavailable::Overloaded.into()),
            Part::Done(false) => Ok(self.wait.take()),
            Part::Done(true) => {
                let (revoked, wait) = revoking.so_far();
                self.reported.revoked += revoked;
                self.spent.clear();
                Ok(wait.or(self.wait.take()))
            }
        }
    }

    fn tell(&mut self) -> Result<Wait, ReportError> {
        let UsageReport { caller, organizations, policy: own, .. } = &self.report;
        let (wall, told) = (self.wall, &mut self.reported.spent);
        let end = (self.look_at + RECORDS_PER_HOLD).min(organizations.len());
        let some = &organizations[self.look_at..end];
        let ((), wait) = self.shared.count(caller.as_deref(), 0, |ledger, _, policy| {
            let policy = newest(own, policy);
            let spent = some.iter().filter_map(|name| {
                let spent = ledger.spent(name, policy.organization_budgets(name), wall)?;
                Some((name.clone(), spent))
            });
            told.extend(spent.take(SPENT_TOLD - told.len()));
        })?;
        self.look_at = end;
        Ok(wait)
    }
}
