//! Counting a report of usage part by part; the lock is released after each part.

use std::sync::Arc;

use lease::{RECORDS_PER_HOLD, Reported};
use policy::Policy;
use tokio::runtime::Handle;

use crate::answers::{ReportError, UsageReport};
use crate::shared::{Part, Shared, Wait};

/// A report that is being counted.
#[derive(Debug)]
pub(crate) struct Reporting {
    shared: Arc<Shared>,
    /// The policy at the start. A later policy that comes into force replaces it.
    policy: Arc<Policy>,
    reporting: lease::Reporting,
    /// The term of the first part.
    begun: Option<u64>,
    /// The last batch that the answer depends on.
    wait: Wait,
    /// A value that is dropped once the report is counted.
    _until_counted: Option<Box<dyn std::any::Any + Send>>,
}

impl Reporting {
    pub(crate) fn new(shared: Arc<Shared>, report: UsageReport) -> Self {
        let UsageReport { submission, policy, until_counted } = report;
        let reporting = lease::Reporting::new(submission, shared.clock.wall());
        Self { shared, policy, reporting, begun: None, wait: None, _until_counted: until_counted }
    }

    /// Whether the report is counted.
    pub(crate) fn is_done(&self) -> bool {
        self.reporting.is_done()
    }

    /// Whether the rest takes little time, so that it can be done on a thread that serves calls.
    pub(crate) fn is_short(&self) -> bool {
        let submission = self.reporting.submission();
        submission.report.len() <= RECORDS_PER_HOLD
            && submission.organizations.len() <= RECORDS_PER_HOLD
            && !self.reporting.ends_leases()
    }

    /// The result, and the batch that the answer has to wait for.
    pub(crate) fn finish(self) -> (Reported, Wait) {
        (self.reporting.finish(), self.wait)
    }

    /// Does all parts that are left. Blocks while too many changes wait for the disk: a report that
    /// is counted in part is of no use.
    pub(crate) fn run(mut self) -> Result<(Reported, Wait), ReportError> {
        while !self.is_done() {
            if let Part::Busy(batch) = self.step(true)? {
                Handle::current().block_on(batch.settled())?;
            }
        }
        Ok(self.finish())
    }

    /// Does the next part, unless the disk is busy and the part `may_wait`. Takes the lock once.
    pub(crate) fn step(&mut self, may_wait: bool) -> Result<Part<()>, ReportError> {
        let Self { shared, policy, reporting, begun, .. } = self;
        let part = shared.report_part(policy, reporting, begun, may_wait)?;
        Ok(part.map(|wait| {
            // Batches become durable in their order: the last one is enough.
            self.wait = wait;
        }))
    }
}
