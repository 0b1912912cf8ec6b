//! A second implementation of the rules, slow and as simple as possible: every operation scans one
//! list of leases from start to end.
//!
//! One file, so that a reader sees all rules together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use lease::{Budget, Kind, Period, Reason, Remembers, Scope, WallTime};

/// The request of a borrow.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) indexer: Option<&'static str>,
    pub(crate) service: &'static str,
    pub(crate) organization: &'static str,
    pub(crate) api_key: &'static str,
    pub(crate) trace: &'static str,
    pub(crate) max_workers: i64,
    pub(crate) borrow_id: Option<u128>,
}

/// The terms of a borrow.
#[derive(Clone, Debug)]
pub(crate) struct Deal {
    pub(crate) service: Option<u64>,
    pub(crate) organization: Option<u64>,
    pub(crate) api_key: Option<u64>,
    pub(crate) ttl: Duration,
    pub(crate) observe: bool,
    pub(crate) budgets: Vec<Budget>,
    /// The most services without an entry in the policy that one indexer may use.
    pub(crate) max_unnamed: u64,
}

/// What the policy says about organizations, API keys and services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stops {
    pub(crate) disabled: Vec<&'static str>,
    pub(crate) disabled_keys: Vec<&'static str>,
    pub(crate) budgets: Vec<(&'static str, Budget)>,
    pub(crate) observed: Vec<&'static str>,
}

/// Bounds that do not depend on the policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bounds {
    pub(crate) leases: usize,
    pub(crate) id_bytes: usize,
    pub(crate) borrow_ids: usize,
    pub(crate) report_keys: usize,
}

/// Whether the policy has an entry for the service.
pub(crate) fn is_named(service: &str) -> bool {
    service.starts_with('t')
}

#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// The number of the grant, counted from 0.
    pub(crate) grant: usize,
    pub(crate) ask: Ask,
    pub(crate) granted_at: Duration,
    pub(crate) ttl: Duration,
    pub(crate) ends_at: Duration,
    pub(crate) lingers: bool,
}

impl Held {
    fn kind(&self) -> Kind {
        if self.ask.max_workers > 0 { Kind::Worker } else { Kind::Session }
    }

    fn trace(&self) -> Option<&'static str> {
        trace_of(&self.ask)
    }
}

fn trace_of(ask: &Ask) -> Option<&'static str> {
    Some(ask.trace).filter(|trace| trace.chars().any(|c| c != '0'))
}

/// An answer of the model. The tests convert the ledger's answers into this form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    None,
    Granted {
        grant: usize,
        ttl: Duration,
        pool: [u64; 3],
        replayed: bool,
        observed: bool,
    },
    Spent {
        used: f64,
    },
    Denied {
        scope: Scope,
        active: u64,
        max: u64,
        pool: [u64; 3],
    },
    Full,
    IdsFull,
    TooManyServices,
    MemoryFull(Remembers),
    Behind,
    BorrowIdReused,
    BorrowEnded,
    Extended(Duration),
    Failed,
    Revoked(Reason),
    Missing,
    Returned,
    Lingers(Duration),
    Yes(bool),
    Count(usize),
    /// Which grants ended, and why.
    Ended(Vec<(usize, Reason)>),
    /// Whether the report counted, which grants it ended, and which organizations have spent a budget.
    Reported {
        counted: bool,
        ended: Vec<(usize, Reason)>,
        spent: Vec<&'static str>,
    },
    KeyReused,
}

#[derive(Clone, Debug)]
struct Tombstone {
    grant: usize,
    ask: Ask,
    reason: Reason,
    until: Duration,
}

#[derive(Clone, Debug)]
struct Bought {
    by: (Option<&'static str>, u128),
    /// The grant and its request; `None` if the borrow was returned before it arrived.
    what: Option<(usize, Ask)>,
    until: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) now: Duration,
    pub(crate) held: Vec<Held>,
    pub(crate) grants: usize,
    bounds: Bounds,
    tombstones: Vec<Tombstone>,
    bought: Vec<Bought>,
    /// For the day and for the month: the number of the latest window, and the amount used in it.
    used: HashMap<(&'static str, &'static str), [(i64, f64); 2]>,
    reports: Vec<Reported>,
}

#[derive(Clone, Debug)]
struct Reported {
    by: Option<&'static str>,
    key: &'static str,
    sums: Sums,
    until: Duration,
}

type Sums = BTreeMap<(&'static str, &'static str), f64>;

impl Model {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    fn count(&self, counts: impl Fn(&Held) -> bool) -> u64 {
        self.held.iter().filter(|held| counts(held)).count() as u64
    }

    fn in_pool(held: &Held, ask: &Ask) -> bool {
        held.ask.organization == ask.organization && held.ask.service == ask.service
    }

    fn pool(&self, ask: &Ask) -> [u64; 3] {
        let pool = self.held.iter().filter(|held| Self::in_pool(held, ask));
        let mut traces: Vec<_> = pool.filter_map(Held::trace).collect();
        let own = traces.iter().filter(|trace| Some(**trace) == trace_of(ask)).count() as u64;
        traces.sort_unstable();
        traces.dedup();
        [self.count(|held| Self::in_pool(held, ask)), traces.len() as u64, own]
    }

    pub(crate) fn expire(&mut self) {
        let now = self.now;
        while let Some(first) = self
            .held
            .iter()
            .filter(|held| held.ends_at <= now)
            .min_by_key(|held| held.ends_at)
            .map(|held| held.grant)
        {
            self.remove(first);
        }
        self.tombstones.retain(|tombstone| tombstone.until > now);
        self.bought.retain(|bought| bought.until > now);
        self.reports.retain(|reported| reported.until > now);
    }

    fn remove(&mut self, grant: usize) {
        let Some(at) = self.held.iter().position(|held| held.grant == grant) else { return };
        let gone = self.held.remove(at);
        let Some(trace) = gone.trace() else { return };
        if gone.kind() == Kind::Worker {
            return;
        }
        let same = |held: &Held| {
            held.trace() == Some(trace)
                && held.ask.indexer == gone.ask.indexer
                && held.ask.organization == gone.ask.organization
        };
        if self.count(|held| same(held) && held.kind() == Kind::Session) == 0 {
            self.held.retain(|held| !same(held));
        }
    }

    pub(crate) fn borrow(&mut self, ask: &Ask, deal: &Deal, wall: WallTime) -> Answer {
        if let Some(id) = ask.borrow_id
            && let Some(bought) = self.bought.iter().find(|b| b.by == (ask.indexer, id))
        {
            let Some((grant, asked)) = bought.what.clone() else { return Answer::BorrowEnded };
            if asked != *ask {
                return Answer::BorrowIdReused;
            }
            let (now, pool) = (self.now, self.pool(ask));
            let live = self.held.iter_mut().find(|held| held.grant == grant && !held.lingers);
            let Some(held) = live else { return Answer::BorrowEnded };
            held.ends_at = held.ends_at.max(now + held.ttl);
            return Answer::Granted { grant, ttl: held.ttl, pool, replayed: true, observed: false };
        }
        let refusal = self.refusal(ask, deal, wall);
        if let (Some(refusal), false) = (&refusal, deal.observe) {
            return refusal.clone();
        }
        if let Some(reason) = self.session_revoked_for(ask) {
            return Answer::Revoked(reason);
        }
        if let Some(full) = self.full(ask, deal) {
            return full;
        }
        let grant = self.grants;
        self.grants += 1;
        self.held.push(Held {
            grant,
            ask: ask.clone(),
            granted_at: self.now,
            ttl: deal.ttl,
            ends_at: self.now + deal.ttl,
            lingers: false,
        });
        if let Some(id) = ask.borrow_id {
            let what = Some((grant, ask.clone()));
            let until = self.now + deal.ttl;
            self.bought.push(Bought { by: (ask.indexer, id), what, until });
        }
        let (pool, observed) = (self.pool(ask), refusal.is_some());
        Answer::Granted { grant, ttl: deal.ttl, pool, replayed: false, observed }
    }

    /// Why a worker is refused although no limit is reached: a session of its trace was revoked,
    /// and no session of that trace is live. The revocation that is remembered longest gives the
    /// reason.
    fn session_revoked_for(&self, ask: &Ask) -> Option<Reason> {
        let trace = trace_of(ask).filter(|_| ask.max_workers > 0)?;
        let is_session = |other: &Ask| {
            other.max_workers == 0
                && trace_of(other) == Some(trace)
                && other.indexer == ask.indexer
                && other.organization == ask.organization
        };
        if self.held.iter().any(|held| is_session(&held.ask)) {
            return None;
        }
        let revoked = self.tombstones.iter().filter(|tombstone| is_session(&tombstone.ask));
        Some(revoked.max_by_key(|tombstone| (tombstone.until, tombstone.grant))?.reason)
    }

    /// The refusal of a borrow that would exceed a bound.
    fn full(&self, ask: &Ask, deal: &Deal) -> Option<Answer> {
        if self.held.len() >= self.bounds.leases {
            return Some(Answer::Full);
        }
        if self.id_bytes() >= self.bounds.id_bytes {
            return Some(Answer::IdsFull);
        }
        let own = self.held.iter().filter(|held| held.ask.indexer == ask.indexer);
        let mut unnamed: BTreeSet<_> = own.map(|held| held.ask.service).collect();
        unnamed.retain(|service| !is_named(service));
        let is_new = !is_named(ask.service) && !unnamed.contains(ask.service);
        if is_new && unnamed.len() as u64 >= deal.max_unnamed {
            return Some(Answer::TooManyServices);
        }
        (ask.borrow_id.is_some() && !self.remembers_another(ask.indexer))
            .then_some(Answer::MemoryFull(Remembers::BorrowIds))
    }

    /// The bytes of the ids of all scopes that hold a lease.
    fn id_bytes(&self) -> usize {
        let mut scopes = BTreeSet::new();
        for Held { ask, .. } in &self.held {
            scopes.insert(("service", vec![ask.service]));
            scopes.insert(("organization", vec![ask.organization]));
            scopes.insert(("key", vec![ask.organization, ask.service, ask.api_key]));
            if let Some(trace) = trace_of(ask) {
                let by = ask.indexer.unwrap_or("nobody");
                scopes.insert(("trace", vec![by, ask.organization, trace]));
            }
        }
        scopes.iter().filter_map(|(_, names)| names.last()).map(|name| name.len()).sum()
    }

    /// Whether one more borrow id of an indexer may be remembered. All indexers with remembered
    /// borrow ids share the bound equally.
    fn remembers_another(&self, indexer: Option<&'static str>) -> bool {
        let mut indexers: BTreeSet<_> = self.bought.iter().map(|bought| bought.by.0).collect();
        indexers.insert(indexer);
        let own = self.bought.iter().filter(|bought| bought.by.0 == indexer).count();
        own < self.bounds.borrow_ids / indexers.len()
    }

    /// The amount used of the first budget that is spent.
    fn spent<'a>(
        &self,
        organization: &str,
        budgets: impl IntoIterator<Item = &'a Budget>,
        wall: WallTime,
    ) -> Option<f64> {
        budgets.into_iter().find_map(|budget| {
            let kept = self
                .used
                .iter()
                .find(|((of, metric), _)| *of == organization && **metric == *budget.metric);
            let (_, used) = kept.map_or((0, 0.0), |(_, kept)| match budget.per {
                Period::Day => current(kept[0], windows(wall)[0]),
                Period::Month => current(kept[1], windows(wall)[1]),
            });
            (used >= budget.amount).then_some(used)
        })
    }

    fn refusal(&self, ask: &Ask, deal: &Deal, wall: WallTime) -> Option<Answer> {
        if let Some(used) = self.spent(ask.organization, &deal.budgets, wall) {
            return Some(Answer::Spent { used });
        }
        let in_service = self.count(|held| held.ask.service == ask.service);
        let in_pool = self.count(|held| Self::in_pool(held, ask));
        let of_key = self.count(|held| Self::in_pool(held, ask) && held.ask.api_key == ask.api_key);
        let of_trace = self.count(|held| {
            Self::in_pool(held, ask)
                && held.ask.indexer == ask.indexer
                && held.trace() == trace_of(ask)
                && held.kind() == Kind::Worker
        });
        let cap = trace_of(ask).filter(|_| ask.max_workers > 0).map(|_| ask.max_workers as u64);
        let limits = [
            (Scope::Service, in_service, deal.service),
            (Scope::Organization, in_pool, deal.organization),
            (Scope::ApiKey, of_key, deal.api_key.filter(|_| !ask.api_key.is_empty())),
            (Scope::Trace, of_trace, cap),
        ];
        limits.into_iter().find_map(|(scope, active, max)| {
            let max = max.filter(|max| active >= *max)?;
            Some(Answer::Denied { scope, active, max, pool: self.pool(ask) })
        })
    }

    fn owned(&mut self, grant: usize, caller: Option<&'static str>) -> Option<&mut Held> {
        self.held.iter_mut().find(|held| {
            held.grant == grant && (held.ask.indexer.is_none() || held.ask.indexer == caller)
        })
    }

    pub(crate) fn keep_alive(&mut self, grant: usize, caller: Option<&'static str>) -> Answer {
        let now = self.now;
        if let Some(held) = self.owned(grant, caller).filter(|held| !held.lingers) {
            held.ends_at = held.ends_at.max(now + held.ttl);
            return Answer::Extended(held.ttl);
        }
        let tombstone = self.tombstones.iter().find(|tombstone| {
            let holder = tombstone.ask.indexer;
            tombstone.grant == grant && (holder.is_none() || holder == caller)
        });
        tombstone.map_or(Answer::Failed, |tombstone| Answer::Revoked(tombstone.reason))
    }

    pub(crate) fn release(
        &mut self,
        grant: usize,
        caller: Option<&'static str>,
        minimal_life: Duration,
    ) -> Answer {
        let now = self.now;
        let Some(held) = self.owned(grant, caller) else { return Answer::Missing };
        let mut until = held.granted_at + minimal_life.min(Duration::from_secs(600));
        if held.lingers {
            until = until.min(held.ends_at);
        }
        if until <= now {
            self.remove(grant);
            return Answer::Returned;
        }
        (held.lingers, held.ends_at) = (true, until);
        Answer::Lingers(until)
    }

    pub(crate) fn release_borrow(
        &mut self,
        id: u128,
        caller: Option<&'static str>,
        minimal_life: Duration,
    ) -> Answer {
        let by = (caller, id);
        match self.bought.iter().find(|bought| bought.by == by).map(|bought| bought.what.clone()) {
            Some(Some((grant, _))) => self.release(grant, caller, minimal_life),
            Some(None) => Answer::Missing,
            None if !self.remembers_another(caller) => Answer::MemoryFull(Remembers::BorrowIds),
            None => {
                let until = self.now + Duration::from_secs(60);
                self.bought.push(Bought { by, what: None, until });
                Answer::Missing
            }
        }
    }

    pub(crate) fn undo(&mut self, grant: usize) -> Answer {
        let Some(held) = self.held.iter().find(|held| held.grant == grant) else {
            return Answer::Yes(false);
        };
        if let Some(id) = held.ask.borrow_id {
            let by = (held.ask.indexer, id);
            self.bought.retain(|bought| bought.by != by);
        }
        self.remove(grant);
        Answer::Yes(true)
    }

    pub(crate) fn revoke(&mut self, grant: usize, reason: Reason) -> Answer {
        Answer::Count(self.end_all(|_, held| (held.grant == grant).then_some(reason)).len())
    }

    /// Ends every lease for which `why` returns a reason, workers first. Returns these leases in
    /// the order of their grants.
    fn end_all(&mut self, why: impl Fn(&Self, &Held) -> Option<Reason>) -> Vec<(usize, Reason)> {
        let doomed = self.held.iter().filter_map(|held| Some((held.clone(), why(self, held)?)));
        let mut doomed: Vec<(Held, Reason)> = doomed.collect();
        doomed.sort_by_key(|(held, _)| held.kind() == Kind::Session);
        for (held, reason) in &doomed {
            let memory = Duration::from_secs(600).max(held.ttl * 10);
            self.tombstones.push(Tombstone {
                grant: held.grant,
                ask: held.ask.clone(),
                reason: *reason,
                until: self.now + memory,
            });
            self.remove(held.grant);
        }
        let mut ended: Vec<_> = doomed.iter().map(|(held, why)| (held.grant, *why)).collect();
        ended.sort_by_key(|(grant, _)| *grant);
        ended
    }

    /// The reason to end a lease because its organization is disabled or has spent a budget.
    fn stopped_for(&self, held: &Held, stops: &Stops, wall: WallTime) -> Option<Reason> {
        if stops.disabled.contains(&held.ask.organization) {
            return Some(Reason::OrganizationDisabled);
        }
        let spent = self.has_spent(held.ask.organization, stops, wall);
        (spent && !stops.observed.contains(&held.ask.service)).then_some(Reason::BudgetSpent)
    }

    fn has_spent(&self, organization: &str, stops: &Stops, wall: WallTime) -> bool {
        let own = stops.budgets.iter().filter(|(of, _)| *of == organization);
        self.spent(organization, own.map(|(_, budget)| budget), wall).is_some()
    }

    pub(crate) fn enforce(&mut self, stops: &Stops, wall: WallTime) -> Answer {
        let mut ended = self.end_all(|model, held| model.stopped_for(held, stops, wall));
        ended.extend(self.end_all(|_, held| {
            let disabled = stops.disabled_keys.contains(&held.ask.api_key);
            disabled.then_some(Reason::ApiKeyDisabled)
        }));
        ended.sort_by_key(|(grant, _)| *grant);
        Answer::Ended(ended)
    }

    pub(crate) fn report(
        &mut self,
        caller: Option<&'static str>,
        key: Option<&'static str>,
        usages: &[(&'static str, &'static str, f64)],
        asked: &[&'static str],
        stops: &Stops,
        wall: WallTime,
    ) -> Answer {
        let mut sums = Sums::new();
        // An amount that cannot be counted is skipped, and a zero makes no count.
        for &(organization, metric, value) in usages.iter().filter(|(_, _, value)| *value > 0.0) {
            *sums.entry((organization, metric)).or_default() += value;
        }
        if let Some(key) = key {
            let known = self.reports.iter().find(|known| known.by == caller && known.key == key);
            if let Some(known) = known {
                if known.sums != sums {
                    return Answer::KeyReused;
                }
                let spent = self.which_have_spent(asked, stops, wall);
                return Answer::Reported { counted: false, ended: Vec::new(), spent };
            }
            if !sums.is_empty() {
                let own = self.reports.iter().filter(|known| known.by == caller).count();
                if own >= self.bounds.report_keys {
                    return Answer::MemoryFull(Remembers::IdempotencyKeys);
                }
                let until = self.now + Duration::from_secs(600);
                self.reports.push(Reported { by: caller, key, sums: sums.clone(), until });
            }
        }
        let had_spent = self.which_have_spent(asked, stops, wall);
        for (of, value) in sums {
            let kept = self.used.entry(of).or_default();
            for (kept, now) in kept.iter_mut().zip(windows(wall)) {
                *kept = current(*kept, now);
                kept.1 += value;
            }
        }
        let spent = self.which_have_spent(asked, stops, wall);
        let ended = self.end_all(|model, held| {
            let now = spent.contains(&held.ask.organization);
            let before = had_spent.contains(&held.ask.organization);
            if now && !before { model.stopped_for(held, stops, wall) } else { None }
        });
        Answer::Reported { counted: true, ended, spent }
    }

    fn which_have_spent(
        &self,
        organizations: &[&'static str],
        stops: &Stops,
        wall: WallTime,
    ) -> Vec<&'static str> {
        let all = organizations.iter().copied();
        all.filter(|organization| self.has_spent(organization, stops, wall)).collect()
    }

    pub(crate) fn state(&self, service: &str, organization: &str) -> (u64, BTreeMap<String, u64>) {
        let mut traces = BTreeMap::new();
        let in_pool =
            |held: &&Held| held.ask.service == service && held.ask.organization == organization;
        for trace in self.held.iter().filter(in_pool).filter_map(Held::trace) {
            *traces.entry(trace.to_owned()).or_insert(0) += 1;
        }
        (self.held.iter().filter(in_pool).count() as u64, traces)
    }

    /// A restart from a store that lost nothing.
    pub(crate) fn restart(&mut self, later: Duration) {
        // The ends of restored leases are spread over a time, in the order of the grants.
        self.held.sort_by_key(|held| held.grant);
        let step = lease::RESUME_SPREAD / self.held.len().max(1) as u32;
        for (place, held) in (0..).zip(&mut self.held) {
            held.ends_at = if held.lingers {
                held.ends_at + later
            } else {
                self.now + later + held.ttl + step * place
            };
        }
        self.now += later;
        self.expire();
    }
}

/// The numbers of the day and of the month at `at`.
fn windows(at: WallTime) -> [i64; 2] {
    let date = at.to_string();
    let number = |text: &str| text.parse::<i64>().expect("a date is made of numbers");
    [at.as_unix().div_euclid(86_400), number(&date[..4]) * 12 + number(&date[5..7])]
}

/// The window to count in: the latest window if it is `now` or the window after it; otherwise
/// `now`, starting at zero.
fn current(kept: (i64, f64), now: i64) -> (i64, f64) {
    if kept.0 == now || kept.0 == now + 1 { kept } else { (now, 0.0) }
}
