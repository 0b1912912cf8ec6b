//! The latest refused borrows with their reasons, and the counts of the last hour, for operators. They
//! are in memory only, and bounded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lease::{BudgetSpent, Denied, Reason, Refusal, Request, RevokedFor, Scope, WallTime};
use parking_lot::Mutex;
use policy::Refused;
use serde::{Deserialize, Serialize};
use store::{BorrowError, Borrowed, Clock};
use utoipa::ToSchema;
use wire::worker::BorrowWorkerRequest;

/// How many refusals are kept with their reason.
const KEPT: usize = 1_000;

/// The most organizations with counts of their own. RefusalLog of more organizations count only in the
/// totals.
const MAX_ORGANIZATIONS: usize = 10_000;

/// How many minutes the counts cover, the current one included.
const MINUTES: u64 = 60;

/// The indices of the causes that are no limit. Those of the limits are the scopes.
const BUDGET: usize = Scope::ALL.len();
const DISABLED: usize = BUDGET + 1;
const CAUSES: usize = DISABLED + 1;

/// The refusals of one server.
#[derive(Debug)]
pub(crate) struct RefusalLog {
    clock: Arc<dyn Clock>,
    records: Mutex<Records>,
    /// How many refusals were recorded: the number of the latest.
    recorded: AtomicU64,
}

#[derive(Debug, Default)]
struct Records {
    /// The latest refusals, the latest last.
    latest: VecDeque<Arc<RefusedBorrow>>,
    total: Hour,
    organizations: HashMap<Arc<str>, Hour, RandomState>,
    /// The minute in which organizations without refusals were last removed.
    swept_at: u64,
}

/// A refused borrow.
#[derive(Debug)]
pub(crate) struct RefusedBorrow {
    number: u64,
    pub(crate) at: WallTime,
    pub(crate) organization: Box<str>,
    pub(crate) service: Box<str>,
    pub(crate) api_key: Box<str>,
    pub(crate) trace: Box<str>,
    cause: Cause,
    /// Whether it was granted, because the service is only observed.
    pub(crate) observed: bool,
}

/// Refused borrows, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refusals {
    /// The limit on the whole service.
    pub service: u64,
    /// The limit on the organization.
    pub organization: u64,
    /// The limit on the API key.
    pub api_key: u64,
    /// The limit on the workers under one trace.
    pub trace: u64,
    /// A spent usage budget.
    pub budget: u64,
    /// A disabled organization or API key, a service the indexer may not use, or a worker after its
    /// session was revoked.
    pub disabled: u64,
}

impl Refusals {
    /// The sum over all causes.
    pub const fn total(&self) -> u64 {
        let Self { service, organization, api_key, trace, budget, disabled } = *self;
        service + organization + api_key + trace + budget + disabled
    }
}

/// The cause of a refusal. Its reason is put into words when it is read.
#[derive(Clone, Debug)]
enum Cause {
    Limit {
        scope: Scope,
        active: u64,
        max: u64,
    },
    Budget(BudgetSpent),
    /// The revocation of the session of a worker.
    Revoked(RevokedFor),
    Policy(Refused),
}

/// RefusalLog of the last hour, by minute and cause. Minutes without refusals use no memory.
#[derive(Debug, Default)]
struct Hour {
    minutes: VecDeque<(u64, [u32; CAUSES])>,
    sum: [u64; CAUSES],
}

impl RefusalLog {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, records: Mutex::default(), recorded: AtomicU64::new(0) }
    }

    /// Records a borrow that the policy refused before the store was called.
    ///
    /// A borrow of an unknown service is a mistake of the caller, and is not recorded.
    pub(crate) fn record_policy(&self, request: &Request<'_>, refused: &Refused) {
        if !matches!(refused, Refused::UnknownService(_)) {
            let Request { service, organization, api_key, trace, .. } = *request;
            let names = [organization, service, api_key, trace];
            self.record(names, Cause::Policy(refused.clone()), false);
        }
    }

    /// Records a borrow that the store refused, or granted only because the service is observed.
    pub(crate) fn record_store(
        &self,
        request: &BorrowWorkerRequest,
        outcome: &Result<Borrowed, BorrowError>,
    ) {
        let (refusal, observed) = match outcome {
            Ok(Borrowed { grant, .. }) => (grant.observed.as_deref(), true),
            Err(BorrowError::Refused(refusal)) => (Some(refusal), false),
            Err(BorrowError::Unavailable(_)) => (None, false),
        };
        let cause = match refusal {
            Some(Refusal::Denied(Denied { scope, active, max, .. })) => {
                Cause::Limit { scope: *scope, active: *active, max: *max }
            }
            Some(Refusal::BudgetSpent(spent)) => Cause::Budget(spent.clone()),
            Some(Refusal::Revoked(why)) => Cause::Revoked(why.clone()),
            // The server is full, or the caller made a mistake: no limit of an operator refused it.
            Some(
                Refusal::Full { .. }
                | Refusal::IdsFull { .. }
                | Refusal::TooManyServices { .. }
                | Refusal::MemoryFull(_)
                | Refusal::OldTerms
                | Refusal::Behind
                | Refusal::BorrowIdReused
                | Refusal::BorrowEnded,
            )
            | None => return,
        };
        let BorrowWorkerRequest { organization_id, service, api_key_id, trace_id, .. } = request;
        self.record([organization_id, service, api_key_id, trace_id], cause, observed);
    }

    fn record(&self, names: [&str; 4], cause: Cause, observed: bool) {
        let [organization, service, api_key, trace] = names.map(Box::<str>::from);
        let (at, minute) = (self.clock.wall(), self.minute());
        let index = cause.index();
        let mut records = self.records.lock();
        if !observed {
            records.count(&organization, minute, index);
        }
        let number = self.recorded.load(Ordering::Relaxed) + 1;
        let refused =
            RefusedBorrow { number, at, organization, service, api_key, trace, cause, observed };
        if records.latest.len() == KEPT {
            records.latest.pop_front();
        }
        records.latest.push_back(Arc::new(refused));
        // Stored under the lock, so that a reader of the number finds the refusal.
        self.recorded.store(number, Ordering::Release);
    }

    /// How many refusals were recorded since the start.
    pub(crate) fn recorded(&self) -> u64 {
        self.recorded.load(Ordering::Acquire)
    }

    /// The latest refusals of one organization or of all, the latest first.
    pub(crate) fn latest(
        &self,
        organization: Option<&str>,
        limit: usize,
    ) -> Vec<Arc<RefusedBorrow>> {
        let records = self.records.lock();
        let wanted = records.latest.iter().rev().filter(|refused| {
            organization.is_none_or(|organization| *refused.organization == *organization)
        });
        wanted.take(limit).cloned().collect()
    }

    /// The latest `limit` refusals after that number, the latest last.
    pub(crate) fn since(&self, number: u64, limit: usize) -> Vec<Arc<RefusedBorrow>> {
        let records = self.records.lock();
        let news = records.latest.iter().rev().take_while(|refused| refused.number > number);
        let mut news: Vec<_> = news.take(limit).cloned().collect();
        drop(records);
        news.reverse();
        news
    }

    /// How many borrows were refused in the last hour, in total and by organization, in no order.
    pub(crate) fn counts(&self) -> (Refusals, Vec<(Arc<str>, Refusals)>) {
        let minute = self.minute();
        let mut records = self.records.lock();
        records.sweep(minute);
        let each = records.organizations.iter().map(|(name, hour)| (name.clone(), hour.counts()));
        let each = each.collect();
        records.total.expire(minute);
        (records.total.counts(), each)
    }

    fn minute(&self) -> u64 {
        self.clock.monotonic().as_secs() / 60
    }
}

impl Records {
    fn count(&mut self, organization: &str, minute: u64, index: usize) {
        self.total.add(minute, index);
        if let Some(hour) = self.organizations.get_mut(organization) {
            hour.add(minute, index);
            return;
        }
        if self.organizations.len() >= MAX_ORGANIZATIONS {
            self.sweep(minute);
        }
        if self.organizations.len() < MAX_ORGANIZATIONS {
            self.organizations.entry(organization.into()).or_default().add(minute, index);
        }
    }

    /// Removes counts that are over an hour old, once in a minute.
    fn sweep(&mut self, minute: u64) {
        if minute != self.swept_at {
            self.swept_at = minute;
            self.organizations.retain(|_, hour| {
                hour.expire(minute);
                !hour.minutes.is_empty()
            });
        }
    }
}

impl Hour {
    fn add(&mut self, minute: u64, index: usize) {
        self.expire(minute);
        match self.minutes.back_mut() {
            Some((latest, causes)) if *latest == minute => causes[index] += 1,
            _ => {
                let mut causes = [0; CAUSES];
                causes[index] = 1;
                self.minutes.push_back((minute, causes));
            }
        }
        self.sum[index] += 1;
    }

    fn expire(&mut self, minute: u64) {
        while let Some((_, causes)) =
            self.minutes.pop_front_if(|(earliest, _)| *earliest + MINUTES <= minute)
        {
            for (sum, gone) in self.sum.iter_mut().zip(causes) {
                *sum -= u64::from(gone);
            }
        }
    }

    fn counts(&self) -> Refusals {
        let [service, organization, api_key, trace, budget, disabled] = self.sum;
        Refusals { service, organization, api_key, trace, budget, disabled }
    }
}

impl RefusedBorrow {
    /// How many leases counted against the limit, and the limit; `None` for other causes.
    pub(crate) const fn limit(&self) -> Option<(u64, u64)> {
        match self.cause {
            Cause::Limit { active, max, .. } => Some((active, max)),
            Cause::Budget(_) | Cause::Revoked(_) | Cause::Policy(_) => None,
        }
    }

    /// The cause: `service`, `organization`, `api_key`, `trace`, `budget` or `disabled`.
    pub(crate) fn scope(&self) -> &'static str {
        match self.cause.index() {
            BUDGET => "budget",
            DISABLED => "disabled",
            scope => Scope::ALL[scope].as_str(),
        }
    }

    /// The reason in words, as in the answer to the caller.
    pub(crate) fn reason(&self) -> String {
        let Self { organization, service, api_key, trace, .. } = self;
        match &self.cause {
            Cause::Limit { scope, active, max } => match scope {
                Scope::Service => format!("service {service} is at {active} of {max} leases"),
                Scope::Organization => {
                    format!("organization {organization} is at {active} of {max} on {service}")
                }
                Scope::ApiKey => format!(
                    "organization {organization} is at {active} of {max} on {service} with API key \
                     {api_key}"
                ),
                Scope::Trace => {
                    format!("trace {trace} is at {active} of {max} workers on {service}")
                }
            },
            Cause::Budget(spent) => format!("organization {organization}: {spent}"),
            Cause::Revoked(why) => format!("the session of trace {trace} has ended: {why}"),
            Cause::Policy(refused) => refused.to_string(),
        }
    }
}

impl Cause {
    /// Its index in the counts.
    const fn index(&self) -> usize {
        match self {
            Self::Limit { scope, .. } => *scope as usize,
            Self::Budget(_) => BUDGET,
            Self::Revoked(why) if matches!(why.reason, Reason::BudgetSpent) => BUDGET,
            Self::Revoked(_) | Self::Policy(_) => DISABLED,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lease::Reason;

    use super::*;

    /// A clock that shows the minute to which it was set.
    #[derive(Debug, Default)]
    struct Minutes(AtomicU64);

    impl Clock for Minutes {
        fn monotonic(&self) -> Duration {
            Duration::from_secs(60 * self.0.load(Ordering::Relaxed))
        }

        fn unix(&self) -> Duration {
            self.monotonic()
        }
    }

    fn refusals() -> (Arc<Minutes>, RefusalLog) {
        let clock = Arc::new(Minutes::default());
        (clock.clone(), RefusalLog::new(clock))
    }

    fn refuse(refusals: &RefusalLog, organization: &str) {
        let refused = Refused::Disabled(Reason::OrganizationDisabled);
        refusals.record_policy(&Request::session("t1r", organization), &refused);
    }

    fn names(refusals: &[Arc<RefusedBorrow>]) -> Vec<&str> {
        refusals.iter().map(|refusal| &*refusal.organization).collect()
    }

    #[test]
    fn a_refusal_counts_for_an_hour() {
        let (clock, refusals) = refusals();
        refuse(&refusals, "acme");
        clock.0.store(59, Ordering::Relaxed);
        refuse(&refusals, "acme");
        refuse(&refusals, "globex");
        let (total, mut each) = refusals.counts();
        each.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(total.disabled, 3);
        assert_eq!((&*each[0].0, each[0].1.disabled), ("acme", 2));
        assert_eq!((&*each[1].0, each[1].1.disabled), ("globex", 1));
        clock.0.store(60, Ordering::Relaxed);
        assert_eq!(refusals.counts().0.disabled, 2);
        clock.0.store(119, Ordering::Relaxed);
        assert_eq!(refusals.counts(), (Refusals::default(), Vec::new()));
        // The list is not limited to the hour.
        assert_eq!(names(&refusals.latest(None, 9)), ["globex", "acme", "acme"]);
        assert_eq!(names(&refusals.latest(Some("acme"), 1)), ["acme"]);
    }

    #[test]
    fn however_many_are_refused_only_the_latest_thousand_are_kept() {
        let (_, refusals) = refusals();
        for number in 0..KEPT + 7 {
            refuse(&refusals, &number.to_string());
        }
        let kept = refusals.latest(None, usize::MAX);
        assert_eq!((kept.len(), &*kept[0].organization), (KEPT, "1006"));
        assert_eq!(&*kept[KEPT - 1].organization, "7");
        assert_eq!(names(&refusals.since(1_004, 9)), ["1004", "1005", "1006"]);
        assert_eq!(names(&refusals.since(0, 2)), ["1005", "1006"]);
        assert!(refusals.since(refusals.recorded(), 9).is_empty());
    }

    #[test]
    fn organizations_past_the_most_count_in_the_totals_and_find_room_after_an_hour() {
        let (clock, refusals) = refusals();
        for number in 0..=MAX_ORGANIZATIONS {
            refuse(&refusals, &number.to_string());
        }
        let (total, each) = refusals.counts();
        assert_eq!((total.disabled, each.len()), (10_001, MAX_ORGANIZATIONS));
        clock.0.store(60, Ordering::Relaxed);
        refuse(&refusals, "late");
        let (total, each) = refusals.counts();
        assert_eq!((total.disabled, each.len(), &*each[0].0), (1, 1, "late"));
    }
}
