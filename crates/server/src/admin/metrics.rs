//! What is counted. Labels are services of the policy and outcomes, never who called.

use std::collections::BTreeMap;
use std::fmt;

use lease::{KeptAlive, Refusal, Released, Scope};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tonic::{Code, Status};

use crate::policy::{DEFAULT_SERVICE, Policy, Refused};
use crate::store::{BorrowError, Borrowed, KeptBatch, Reported};

/// The counters of one server, in a registry of its own.
pub(crate) struct Metrics {
    registry: Registry,
    borrows: Family<BorrowLabels, Counter>,
    live: Family<ServiceLabel, Gauge>,
    pub(crate) calls: CallCounters,
    pub(crate) streams: StreamCounters,
    pub(crate) usage: UsageCounters,
    pub(crate) reloads: ReloadCounters,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BorrowLabels {
    service: String,
    outcome: &'static str,
    scope: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Borrows of one service, by outcome. Handles are looked up once, when a policy comes into force.
#[derive(Clone, Debug)]
pub(crate) struct BorrowCounters {
    borrowed: Counter,
    observed: Counter,
    denied: [Counter; Scope::ALL.len()],
    budget_spent: Counter,
    refused: Counter,
    invalid: Counter,
    unavailable: Counter,
}

impl BorrowCounters {
    /// Counts what the store answered to a borrow.
    pub(crate) fn count(&self, outcome: &Result<Borrowed, BorrowError>) {
        let counter = match outcome {
            Ok(Borrowed { grant, .. }) if grant.observed.is_some() => &self.observed,
            Ok(_) => &self.borrowed,
            Err(BorrowError::Refused(refusal)) => match refusal {
                Refusal::Denied(denied) => &self.denied[denied.scope as usize],
                Refusal::BudgetSpent(_) => &self.budget_spent,
                Refusal::Full { .. } => &self.unavailable,
                Refusal::BorrowIdReused | Refusal::BorrowEnded => &self.invalid,
            },
            Err(BorrowError::Unavailable(_)) => &self.unavailable,
        };
        counter.inc();
    }

    /// Counts a borrow that the policy refused before the store was asked.
    pub(crate) fn count_refused(&self, refused: &Refused) {
        match refused {
            Refused::UnknownService(_) => self.invalid.inc(),
            Refused::ServiceNotAllowed { .. } | Refused::Disabled(_) => self.refused.inc(),
        };
    }
}

/// Calls other than borrows, by outcome.
#[derive(Clone, Debug)]
pub(crate) struct CallCounters {
    kept_alive: Counter,
    not_kept_alive: Counter,
    revoked: Counter,
    returned: Counter,
    lingering: Counter,
    missing: Counter,
}

impl CallCounters {
    pub(crate) fn count_keep_alive(&self, answer: KeptAlive) {
        match answer {
            KeptAlive::Extended { .. } => self.kept_alive.inc(),
            KeptAlive::Failed => self.not_kept_alive.inc(),
            KeptAlive::Revoked(_) => self.revoked.inc(),
        };
    }

    /// Counts a batch of `keys` keep-alives.
    pub(crate) fn count_batch(&self, keys: usize, kept: &KeptBatch) {
        self.kept_alive.inc_by(keys.saturating_sub(kept.listed()) as u64);
        self.not_kept_alive.inc_by(kept.failed.len() as u64);
        self.revoked.inc_by(kept.revoked.len() as u64);
    }

    pub(crate) fn count_return(&self, answer: Released) {
        match answer {
            Released::Returned => self.returned.inc(),
            Released::Lingers { .. } => self.lingering.inc(),
            Released::Missing => self.missing.inc(),
        };
    }
}

/// The attached streams of session control.
#[derive(Clone, Debug, Default)]
pub(crate) struct StreamCounters {
    /// Streams that are attached now.
    pub(crate) attached: Gauge,
    /// Revocations that were pushed.
    pub(crate) pushed: Counter,
}

impl StreamCounters {
    fn register(registry: &mut Registry) -> Self {
        let streams = Self::default();
        registry.register(
            "attached_streams",
            "Streams of session control that are attached now",
            streams.attached.clone(),
        );
        registry.register(
            "pushes",
            "Revocations that were pushed on attached streams",
            streams.pushed.clone(),
        );
        streams
    }
}

/// Reports of usage, by outcome, and what was in those that counted.
#[derive(Clone, Debug)]
pub(crate) struct UsageCounters {
    counted: Counter,
    repeated: Counter,
    invalid: Counter,
    unavailable: Counter,
    events: Counter,
}

impl UsageCounters {
    fn register(registry: &mut Registry) -> Self {
        let reports = Family::<OutcomeLabel, Counter>::default();
        let events = Counter::default();
        registry.register("usage_reports", "Reports of usage by outcome", reports.clone());
        registry.register("usage_events", "Events of usage that counted", events.clone());
        let reported = |outcome| reports.get_or_create_owned(&OutcomeLabel { outcome });
        Self {
            counted: reported("counted"),
            repeated: reported("repeated"),
            invalid: reported("invalid"),
            unavailable: reported("unavailable"),
            events,
        }
    }

    /// Counts a report of so many `events`.
    pub(crate) fn count(&self, reported: &Reported, events: u64) {
        if reported.counted {
            self.counted.inc();
            self.events.inc_by(events);
        } else {
            self.repeated.inc();
        }
    }

    /// Counts a report that was refused with this status.
    pub(crate) fn count_refused(&self, status: &Status) {
        match status.code() {
            Code::Unavailable => self.unavailable.inc(),
            _ => self.invalid.inc(),
        };
    }
}

/// Loads of the policy file while the server runs, by outcome.
#[derive(Clone, Debug)]
pub(crate) struct ReloadCounters {
    /// It came into force.
    pub(crate) applied: Counter,
    /// It was not sound, or not there, and the policy in force stayed.
    pub(crate) refused: Counter,
}

impl ReloadCounters {
    fn register(registry: &mut Registry) -> Self {
        let reloads = Family::<OutcomeLabel, Counter>::default();
        let help = "Reloads of the policy file by outcome";
        registry.register("policy_reloads", help, reloads.clone());
        let counter = |outcome| reloads.get_or_create_owned(&OutcomeLabel { outcome });
        Self { applied: counter("applied"), refused: counter("refused") }
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("tgm_session");
        let borrows = Family::<BorrowLabels, Counter>::default();
        let live = Family::<ServiceLabel, Gauge>::default();
        let keep_alives = Family::<OutcomeLabel, Counter>::default();
        let returns = Family::<OutcomeLabel, Counter>::default();
        registry.register(
            "borrows",
            "Borrows by service, outcome and, for a reached ceiling, its scope",
            borrows.clone(),
        );
        registry.register("live_leases", "Leases that count now, by service", live.clone());
        registry.register("keep_alives", "Keep-alives by outcome", keep_alives.clone());
        registry.register("returns", "Returns by outcome", returns.clone());
        let kept = |outcome| keep_alives.get_or_create_owned(&OutcomeLabel { outcome });
        let returned = |outcome| returns.get_or_create_owned(&OutcomeLabel { outcome });
        let calls = CallCounters {
            kept_alive: kept("ttl_extended"),
            not_kept_alive: kept("failed"),
            revoked: kept("revoked"),
            returned: returned("returned"),
            lingering: returned("ttl_updated"),
            missing: returned("missing_key"),
        };
        let streams = StreamCounters::register(&mut registry);
        let usage = UsageCounters::register(&mut registry);
        let reloads = ReloadCounters::register(&mut registry);
        Self { registry, borrows, live, calls, streams, usage, reloads }
    }

    /// The counters of the service entry called `service`.
    pub(crate) fn borrows_of(&self, service: &str) -> BorrowCounters {
        let counter = |outcome, scope| {
            let service = service.to_owned();
            self.borrows.get_or_create_owned(&BorrowLabels { service, outcome, scope })
        };
        BorrowCounters {
            borrowed: counter("borrowed", ""),
            observed: counter("observed", ""),
            denied: Scope::ALL.map(|scope| counter("denied", scope.as_str())),
            budget_spent: counter("budget_spent", ""),
            refused: counter("refused", ""),
            invalid: counter("invalid", ""),
            unavailable: counter("unavailable", ""),
        }
    }

    /// Takes in how many leases live, by service; services without an entry go with the default.
    pub(crate) fn set_live(&self, policy: &Policy, live: &[(Box<str>, u64)]) {
        let mut by_label: BTreeMap<&str, i64> = policy.services().map(|name| (name, 0)).collect();
        for (service, leases) in live {
            let label = policy.services().find(|name| *name == &**service);
            let sum = by_label.entry(label.unwrap_or(DEFAULT_SERVICE)).or_default();
            *sum = sum.saturating_add(i64::try_from(*leases).unwrap_or(i64::MAX));
        }
        for (service, leases) in by_label {
            let label = ServiceLabel { service: service.to_owned() };
            self.live.get_or_create(&label).set(leases);
        }
    }

    /// Everything, in the text format of OpenMetrics.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}
