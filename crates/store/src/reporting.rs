//! Reports of usage, part by part with the lock free in between.

use std::sync::Arc;

use lease::{RECORDS_PER_HOLD, Reported};
use policy::Policy;
use tokio::runtime::Handle;

use crate::answers::{ReportError, Unavailable, UsageReport};
use crate::shared::{Part, Shared, Wait};

/// A report on its way into the ledger.
#[derive(Debug)]
pub(crate) struct Reporting {
    shared: Arc<Shared>,
    /// The policy at the beginning: the one in force counts, once there is a later one.
    policy: Arc<Policy>,
    reporting: lease::Reporting,
    /// The last batch that the answer depends on.
    wait: Wait,
    /// What is dropped once the report is counted.
    _until_counted: Option<Box<dyn std::any::Any + Send>>,
}

impl Reporting {
    pub(crate) fn new(shared: Arc<Shared>, report: UsageReport) -> Self {
        let UsageReport { submission, policy, until_counted } = report;
        let reporting = lease::Reporting::new(submission, shared.clock.wall());
        Self { shared, policy, reporting, wait: None, _until_counted: until_counted }
    }

    /// Whether nothing is left to do.
    pub(crate) fn is_done(&self) -> bool {
        self.reporting.is_done()
    }

    /// Whether what is left is little enough to be done where calls are served.
    pub(crate) fn is_short(&self) -> bool {
        let submission = self.reporting.submission();
        submission.report.len() <= RECORDS_PER_HOLD
            && submission.organizations.len() <= RECORDS_PER_HOLD
            && !self.reporting.ends_leases()
    }

    /// What came of it, and what the answer has to wait for.
    pub(crate) fn finish(self) -> (Reported, Wait) {
        (self.reporting.finish(), self.wait)
    }

    /// Does all that is left. Blocks: where too much waits for the disk, it waits for that, since
    /// half a report is of no use to anybody.
    pub(crate) fn run(mut self) -> Result<(Reported, Wait), ReportError> {
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
    pub(crate) fn step(&mut self) -> Result<(), ReportError> {
        match self.shared.report_part(&self.policy, &mut self.reporting)? {
            Part::Busy(_) => Err(Unavailable::Overloaded.into()),
            Part::Done(wait) => {
                // Batches become durable in their order: the last one is enough.
                self.wait = wait;
                Ok(())
            }
        }
    }
}
