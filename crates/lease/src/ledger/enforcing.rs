//! Ending every lease that a policy does not let live: of a disabled organization or API key, or of
//! an organization that has spent a usage budget.
//!
//! An enforcement is done in parts of [`RECORDS_PER_HOLD`](crate::RECORDS_PER_HOLD) records at most, so
//! that a lock around the ledger is free between two parts. Each part asks the policy again: another
//! policy may have come into force since.

use std::collections::VecDeque;

use crate::budget::WallTime;
use crate::clock::Timestamp;
use crate::id::LeaseId;
use crate::lease::{Kind, Reason};
use crate::policy::Policy;
use crate::revocation::RevokedFor;
use crate::table::AtPool;

use super::Ledger;

/// How far an enforcement has come; see [`Ledger::enforce`].
#[derive(Debug, Default)]
pub struct Enforcement {
    /// Organizations to look at.
    candidates: VecDeque<Box<str>>,
    /// Organizations whose leases may not live. Those of the last one are being ended.
    stopped: Vec<Box<str>>,
    walk: PoolWalk,
    /// The kind and the part of the leases to look at next for a disabled API key.
    api_keys: Option<(Kind, u32)>,
}

/// How far the revocation of the leases of one organization has come.
///
/// Workers are revoked before sessions, so that a worker whose session is revoked too learns the
/// reason.
#[derive(Debug, Default)]
struct PoolWalk {
    workers_done: bool,
    at: AtPool,
}

impl Enforcement {
    /// An enforcement of the whole policy, which names these organizations and API keys.
    pub fn of_policy<'a>(
        policy: &(impl Policy + ?Sized),
        organizations: impl IntoIterator<Item = &'a str>,
        api_keys: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let organizations = organizations.into_iter().filter(|name| policy.may_stop(name));
        let mut api_keys = api_keys.into_iter();
        Self {
            candidates: organizations.map(Into::into).collect(),
            api_keys: api_keys
                .any(|api_key| policy.is_api_key_disabled(api_key))
                .then_some((Kind::Worker, 0)),
            ..Self::default()
        }
    }

    /// Enforces the policy on these organizations too.
    pub(super) fn add_organizations(&mut self, names: impl IntoIterator<Item = Box<str>>) {
        self.candidates.extend(names);
    }

    /// Whether nothing is left to look at.
    pub fn is_done(&self) -> bool {
        self.candidates.is_empty() && self.stopped.is_empty() && self.api_keys.is_none()
    }
}

impl Ledger {
    /// Ends the next leases that `policy` does not let live, at most
    /// [`RECORDS_PER_HOLD`](crate::RECORDS_PER_HOLD) of them, and answers their keys with the reasons.
    ///
    /// All leases of a disabled organization end, and all of a disabled API key. Where a budget is
    /// spent in the window of `wall`, leases of services that the policy only observes live on. It is
    /// called with the same `enforcement` until that is done. What is borrowed meanwhile may be ended
    /// too.
    ///
    /// ```
    /// use lease::{Config, Enforcement, Ledger, Policy, Request, Terms, Timestamp, WallTime};
    ///
    /// /// Disables acme.
    /// #[derive(Debug)]
    /// struct NoAcme;
    ///
    /// impl Policy for NoAcme {
    ///     fn is_organization_disabled(&self, organization: &str) -> bool { organization == "acme" }
    /// }
    ///
    /// let (mut ledger, now) = (Ledger::new(Config::default()), Timestamp::ZERO);
    /// ledger.borrow(&Request::session("t1r", "acme"), &Terms::default(), now).unwrap();
    /// ledger.borrow(&Request::session("t1r", "globex"), &Terms::default(), now).unwrap();
    /// let mut enforcement = Enforcement::of_policy(&NoAcme, ["acme"], []);
    /// while !enforcement.is_done() {
    ///     ledger.enforce(&NoAcme, WallTime::default(), &mut enforcement, now);
    /// }
    /// assert_eq!(ledger.len(), 1);
    /// ```
    pub fn enforce(
        &mut self,
        policy: &dyn Policy,
        wall: WallTime,
        enforcement: &mut Enforcement,
        now: Timestamp,
    ) -> Vec<(LeaseId, RevokedFor)> {
        self.advance(now);
        let Enforcement { candidates, stopped, walk, api_keys } = enforcement;
        let mut revoked = Vec::new();
        if let Some(organization) = stopped.last() {
            let why = self.stops(policy, organization, wall);
            let is_done = why.is_none_or(|why| {
                self.revoke_organization(policy, organization, &why, walk, &mut revoked)
            });
            if is_done {
                stopped.pop();
                *walk = PoolWalk::default();
            }
        } else if !candidates.is_empty() {
            let some = candidates.len().min(self.records_per_hold);
            let some = candidates.drain(..some);
            stopped.extend(some.filter(|name| {
                self.table.has_leases_of(name) && self.stops(policy, name, wall).is_some()
            }));
        } else if let Some((kind, part)) = *api_keys {
            *api_keys = match (self.revoke_api_keys(policy, kind, part, &mut revoked), kind) {
                (true, kind) => Some((kind, part + 1)),
                (false, Kind::Worker) => Some((Kind::Session, 0)),
                (false, Kind::Session) => None,
            };
        }
        self.journal_ended_traces();
        revoked
    }

    /// Why leases of the organization may not live.
    fn stops(&self, policy: &dyn Policy, organization: &str, wall: WallTime) -> Option<RevokedFor> {
        if policy.is_organization_disabled(organization) {
            return Some(Reason::OrganizationDisabled.into());
        }
        self.spent(organization, policy.budgets(organization), wall).map(RevokedFor::from)
    }

    /// Ends the next leases of an organization. Answers whether none is left that has to end.
    fn revoke_organization(
        &mut self,
        policy: &dyn Policy,
        organization: &str,
        why: &RevokedFor,
        walk: &mut PoolWalk,
        revoked: &mut Vec<(LeaseId, RevokedFor)>,
    ) -> bool {
        let lives = |service: &str| why.reason == Reason::BudgetSpent && policy.observes(service);
        for _ in 0..self.records_per_hold {
            let Some(pool) = self.table.pool_at(organization, walk.at) else {
                if walk.workers_done || !self.table.has_leases_of(organization) {
                    return true;
                }
                (walk.workers_done, walk.at) = (true, AtPool::Start);
                continue;
            };
            let next = self.table.after_pool(pool);
            let kind = if walk.workers_done { Kind::Session } else { Kind::Worker };
            let lease = self.table.first_of_pool(pool, kind);
            let lease = lease.filter(|_| !lives(self.table.service_of_pool(pool)));
            walk.at = AtPool::Pool(pool);
            if let Some(slot) = lease {
                let id = self.revoke_or_end(slot, why.clone());
                revoked.extend(id.map(|id| (id, why.clone())));
            }
            if lease.is_none() || !self.table.has_pool(pool) {
                walk.at = next;
            }
        }
        false
    }

    /// Ends every lease of that kind in one part of the table whose API key is disabled. Answers
    /// whether there is such a part.
    fn revoke_api_keys(
        &mut self,
        policy: &dyn Policy,
        kind: Kind,
        part: u32,
        revoked: &mut Vec<(LeaseId, RevokedFor)>,
    ) -> bool {
        let Some(leases) = self.table.leases.part(part) else { return false };
        let of_kind = leases.filter(|(_, entry)| entry.kind() == kind);
        let disabled = of_kind
            .filter(|(_, entry)| policy.is_api_key_disabled(self.table.names(entry).api_key));
        let disabled: Vec<u32> = disabled.map(|(slot, _)| slot).collect();
        for slot in disabled {
            let why = RevokedFor::from(Reason::ApiKeyDisabled);
            let id = self.revoke_or_end(slot, why.clone());
            revoked.extend(id.map(|id| (id, why)));
        }
        true
    }
}
