//! Ending many leases for a reason, with the lock free in between.

use std::sync::Arc;
use std::vec::IntoIter;

use futures_util::future::{Either, ready};
use lease::{Kind, Ledger, RECORDS_PER_HOLD, Reason, RevocationWalk, RevokedFor, WallTime};
use policy::Policy;
use tokio::runtime::Handle;

use super::shared::{Part, Shared, Wait, newest};
use crate::store::{Enforced, Unavailable};

/// Holds of the lock that are worth no thread of their own.
const AT_ONCE: usize = 8;

/// A revocation of all leases that a policy does not let live, or of those of some organizations.
#[derive(Debug)]
pub(super) struct Revoking {
    /// The policy at the beginning: the one in force counts, once there is a later one.
    policy: Policy,
    /// The number of the audit entry that tells of it.
    entry: Option<u64>,
    /// Organizations that may have to go.
    candidates: IntoIter<Box<str>>,
    /// Those that have to.
    doomed: Vec<Box<str>>,
    /// How far it has come with the last of those.
    walk: RevocationWalk,
    /// Which leases to look at next for an API key that is disabled.
    api_keys: Option<(Kind, u32)>,
    revoked: usize,
    wait: Wait,
}

impl Revoking {
    /// Ends every lease that `policy` does not let live.
    /// The audit entry of that number, which that batch makes durable, tells of it.
    pub(super) fn enforce(policy: Policy, entry: Option<(u64, Wait)>) -> Self {
        let candidates: Vec<Box<str>> = policy.may_be_stopped().map(Into::into).collect();
        let api_keys = policy.disables_api_keys().then_some((Kind::Worker, 0));
        let (entry, wait) = entry.unzip();
        let wait = wait.flatten();
        Self { api_keys, entry, wait, ..Self::of(policy, candidates) }
    }

    /// Ends every lease of some organizations that `policy` does not let live.
    ///
    /// Where a budget is spent, the leases of observed services live on.
    pub(super) fn of(policy: Policy, organizations: Vec<Box<str>>) -> Self {
        Self {
            policy,
            entry: None,
            candidates: organizations.into_iter(),
            doomed: Vec::new(),
            walk: RevocationWalk::default(),
            api_keys: None,
            revoked: 0,
            wait: None,
        }
    }

    /// Does what takes a few holds of the lock, and the rest on a thread for what blocks. It is on its
    /// way when this returns, and does not stop when the future is dropped.
    ///
    /// Answers how many leases were revoked, once that is durable.
    pub(super) fn start(
        mut self,
        shared: &Arc<Shared>,
    ) -> impl Future<Output = Result<Enforced, Unavailable>> + Send + use<> {
        let entry = self.entry;
        let mut done = Ok(false);
        for _ in 0..AT_ONCE {
            match self.step(shared) {
                Ok(Part::Done(is_last)) => done = Ok(is_last),
                Ok(Part::Busy(_)) => break,
                Err(error) => done = Err(error),
            }
            if done != Ok(false) {
                break;
            }
        }
        let rest = match done {
            Ok(false) => {
                let shared = shared.clone();
                Either::Left(super::aside_at_once(move || self.run(&shared)))
            }
            Ok(true) => Either::Right(ready(Ok((self.revoked, self.wait)))),
            Err(error) => Either::Right(ready(Err(error))),
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

    /// How many leases were revoked so far, and what makes that durable.
    pub(super) fn so_far(&self) -> (usize, Wait) {
        (self.revoked, self.wait.clone())
    }

    /// Goes on to the end. Blocks while too many changes wait for the disk.
    fn run(mut self, shared: &Shared) -> Result<(usize, Wait), Unavailable> {
        loop {
            match self.step(shared)? {
                Part::Done(true) => return Ok((self.revoked, self.wait)),
                Part::Done(false) => {}
                Part::Busy(batch) => Handle::current().block_on(batch.settled())?,
            }
        }
    }

    /// Takes one hold of the lock; tells whether that was the last.
    pub(super) fn step(&mut self, shared: &Shared) -> Result<Part<bool>, Unavailable> {
        if let Some(organization) = self.doomed.last() {
            let (own, walk, wall) = (&self.policy, &mut self.walk, shared.clock.wall());
            let part = shared.revoke_part(self.entry, |ledger, now, policy, revoked| {
                let policy = newest(own, policy);
                let Some(why) = doom(policy, ledger, organization, wall) else {
                    // Another policy has come into force since.
                    return walk.end();
                };
                let for_budget = why.reason == Reason::BudgetSpent;
                let spares = |service: &str| for_budget && policy.observes(service);
                let ids = ledger.revoke_organization(organization, &why, spares, walk, now);
                revoked.extend(ids.into_iter().map(|id| (id, why.clone())));
            })?;
            let part = self.count(part);
            if self.walk.is_done() {
                self.doomed.pop();
                self.walk = RevocationWalk::default();
            }
            return Ok(part);
        }
        if !self.candidates.as_slice().is_empty() {
            return self.look(shared);
        }
        let Some((kind, part)) = self.api_keys else { return Ok(Part::Done(true)) };
        let (own, mut is_last) = (&self.policy, false);
        let revoked = shared.revoke_part(self.entry, |ledger, now, policy, revoked| {
            let policy = newest(own, policy);
            let judge = |holder: &lease::Holder<'_>| {
                policy.api_key_disabled(holder.api_key).0.then_some(Reason::ApiKeyDisabled)
            };
            match ledger.revoke_part(part, kind, judge, now) {
                Some(ids) => {
                    revoked.extend(ids.into_iter().map(|(id, reason)| (id, reason.into())));
                }
                None => is_last = true,
            }
        })?;
        if matches!(revoked, Part::Done(_)) {
            self.api_keys = match (is_last, kind) {
                (false, kind) => Some((kind, part + 1)),
                (true, Kind::Worker) => Some((Kind::Session, 0)),
                (true, Kind::Session) => None,
            };
        }
        Ok(self.count(revoked))
    }

    fn count(&mut self, part: Part<(usize, Wait)>) -> Part<bool> {
        match part {
            Part::Busy(batch) => Part::Busy(batch),
            Part::Done((revoked, wait)) => {
                self.revoked += revoked;
                self.wait = wait.or(self.wait.take());
                Part::Done(false)
            }
        }
    }

    /// Looks which of the next organizations hold leases that may not live.
    fn look(&mut self, shared: &Shared) -> Result<Part<bool>, Unavailable> {
        let wall = shared.clock.wall();
        let policy = shared.policy();
        let (policy, doomed) = (newest(&self.policy, &policy), &mut self.doomed);
        let some = self.candidates.by_ref().take(RECORDS_PER_HOLD);
        shared.read(|ledger| {
            for organization in some.filter(|name| ledger.has_leases_of(name)) {
                let is_doomed = doom(policy, ledger, &organization, wall).is_some();
                doomed.extend(is_doomed.then_some(organization));
            }
        })?;
        Ok(Part::Done(false))
    }
}

/// Why no lease of the organization may live.
fn doom(
    policy: &Policy,
    ledger: &Ledger,
    organization: &str,
    wall: WallTime,
) -> Option<RevokedFor> {
    if policy.organization_disabled(organization).0 {
        return Some(Reason::OrganizationDisabled.into());
    }
    let budgets = policy.organization_budgets(organization);
    ledger.spent(organization, budgets, wall).map(RevokedFor::from)
}
