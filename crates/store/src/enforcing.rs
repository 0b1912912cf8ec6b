//! Enforcing a policy: it ends leases part by part, and releases the lock after each part.

use std::sync::Arc;

use futures_util::future::{Either, ready};
use lease::Enforcement;
use policy::Policy;
use policy::overrides::Subject;
use tokio::runtime::Handle;

use crate::answers::{Enforced, Unavailable};
use crate::blocking::join;
use crate::shared::{Part, Shared, Wait, newest};

/// The number of parts that are done on the calling thread before a thread of their own is used.
const AT_ONCE: usize = 8;

/// Ends all leases that a policy no longer allows.
#[derive(Debug)]
pub(crate) struct Enforcing {
    /// The policy at the start. A later policy that comes into force replaces it.
    policy: Policy,
    /// The number of the audit entry that counts the leases that ended.
    entry: Option<u64>,
    enforcement: Enforcement,
    /// The term of the first part.
    begun: Option<u64>,
    /// How many leases were revoked so far.
    pub(crate) revoked: usize,
    wait: Wait,
}

impl Enforcing {
    /// Prepares to end all leases that `policy` no longer allows. `entry` is the number of the audit
    /// entry that counts them, and the batch that makes this entry durable.
    pub(crate) fn new(policy: Policy, entry: Option<(u64, Wait)>) -> Self {
        let enforcement = Enforcement::of_policy(
            &policy,
            policy.subjects(Subject::Organization),
            policy.subjects(Subject::ApiKey),
        );
        let (entry, wait) = entry.unzip();
        Self { policy, entry, enforcement, begun: None, revoked: 0, wait: wait.flatten() }
    }

    /// Does the first parts on this thread, and the rest on a thread that may block. The work has
    /// started when this returns, and goes on when the future is dropped.
    ///
    /// The future returns how many leases were revoked, once that is durable.
    pub(crate) fn start(
        mut self,
        shared: &Arc<Shared>,
    ) -> impl Future<Output = Result<Enforced, Unavailable>> + Send + use<> {
        let entry = self.entry;
        let mut begun = Ok(Part::Done(()));
        for _ in 0..AT_ONCE {
            if self.is_done() || !matches!(begun, Ok(Part::Done(()))) {
                break;
            }
            begun = self.step(shared);
        }
        let rest = match begun {
            Ok(_) if !self.is_done() => {
                let shared = shared.clone();
                Either::Left(join(tokio::task::spawn_blocking(move || self.run(&shared))))
            }
            begun => Either::Right(ready(begun.map(|_| (self.revoked, self.wait)))),
        };
        async move {
            let (revoked, wait) = rest.await?;
            match (wait, entry) {
                (None, _) => {}
                (Some(batch), None) => batch.durable().await?,
                (Some(batch), Some(_)) => batch.settled().await?,
            }
            Ok(Enforced { ended: revoked, entry })
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.enforcement.is_done()
    }

    /// Does all parts that are left. Blocks while too many changes wait for the disk.
    fn run(mut self, shared: &Shared) -> Result<(usize, Wait), Unavailable> {
        while !self.is_done() {
            if let Part::Busy(batch) = self.step(shared)? {
                Handle::current().block_on(batch.settled())?;
            }
        }
        Ok((self.revoked, self.wait))
    }

    /// Does the next part, if one is left. Takes the lock once.
    pub(crate) fn step(&mut self, shared: &Shared) -> Result<Part<()>, Unavailable> {
        if self.is_done() {
            return Ok(Part::Done(()));
        }
        let (own, enforcement, wall) = (&self.policy, &mut self.enforcement, shared.clock.wall());
        let part = shared.revoke_part(self.entry, &mut self.begun, |ledger, now, policy| {
            ledger.enforce(newest(own, policy), wall, enforcement, now)
        });
        let part = part.map_err(|why| match self.entry {
            // The entry is recorded already.
            Some(_) if why.is_for_the_leader() => Unavailable::TermEnded,
            _ => why,
        })?;
        Ok(part.map(|(revoked, wait)| {
            self.revoked += revoked;
            if revoked > 0 {
                self.wait = wait.or(self.wait.take());
            }
        }))
    }
}
