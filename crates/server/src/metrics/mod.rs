//! The metrics of the server. Labels are services of the policy and outcomes, never callers.

mod calls;
pub(crate) mod format;
mod latency;

use std::time::Instant;

use lease::{KeptAlive, Kind, Reason, Refusal, Released, Scope, Uncountable, WallTime};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tonic::{Code, Status};

pub(crate) use calls::{Calls, Method};
use policy::Refused;
use store::{BorrowError, Borrowed, Commits, NotExtended, Reported, Skipped};

/// The names and the values of the labels of a metric.
pub(crate) type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The prefix of the name of every metric of the server.
pub(crate) const PREFIX: &str = "tgm_session";

/// The counters of one server, in a registry of its own.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) registry: Registry,
    borrows: Family<[(&'static str, String); 3], Counter>,
    /// Connections of the gRPC port that are open.
    pub(crate) connections: Gauge,
    /// Bytes that connections and calls in flight have reserved.
    pub(crate) memory: Gauge,
    pub(crate) calls: CallCounters,
    pub(crate) streams: StreamCounters,
    pub(crate) usage: UsageCounters,
    pub(crate) reloads: ReloadCounters,
    /// Calls that were passed on to the leader of the fleet.
    pub(crate) forwarded: Counter,
}

/// Borrows of one service, by outcome. The counters are looked up once, when a policy comes into force.
#[derive(Clone, Debug)]
pub(crate) struct BorrowCounters {
    borrowed: Counter,
    observed: Counter,
    denied: [Counter; Scope::ALL.len()],
    budget_spent: Counter,
    refused: Counter,
    invalid: Counter,
    unavailable: Counter,
    busy: Counter,
}

impl BorrowCounters {
    /// Counts a borrow on which no decision was made; the answer for a worker is to try again.
    pub(crate) fn count_undecided(&self, kind: Kind) {
        match kind {
            Kind::Session => self.unavailable.inc(),
            Kind::Worker => self.busy.inc(),
        };
    }

    /// Counts the decision of the store on a borrow. Without a decision, `count_undecided` counts the
    /// answer.
    pub(crate) fn count(&self, outcome: &Result<Borrowed, BorrowError>) {
        let counter = match outcome {
            Ok(Borrowed { grant, .. }) if grant.observed.is_some() => &self.observed,
            Ok(_) => &self.borrowed,
            Err(BorrowError::Refused(refusal)) => match refusal {
                Refusal::Denied(denied) => &self.denied[denied.scope as usize],
                Refusal::BudgetSpent(_) => &self.budget_spent,
                Refusal::Revoked(why) if why.reason == Reason::BudgetSpent => &self.budget_spent,
                Refusal::Revoked(_) => &self.refused,
                Refusal::BorrowIdReused | Refusal::BorrowEnded => &self.invalid,
                Refusal::Full { .. }
                | Refusal::IdsFull { .. }
                | Refusal::TooManyServices { .. }
                | Refusal::MemoryFull(_)
                | Refusal::OldTerms
                | Refusal::Behind => return,
            },
            Err(BorrowError::Unavailable(_)) => return,
        };
        counter.inc();
    }

    /// Counts a borrow that the policy refused before the store was called.
    pub(crate) fn count_refused(&self, refused: &Refused) {
        match refused {
            Refused::UnknownService(_) => self.invalid.inc(),
            Refused::ServiceNotAllowed { .. } | Refused::Disabled(_) => self.refused.inc(),
        };
    }
}

/// Calls other than borrows, by outcome, and all calls by method.
#[derive(Clone, Debug)]
pub(crate) struct CallCounters {
    pub(crate) by_method: Calls,
    kept_alive: Counter,
    not_kept_alive: Counter,
    revoked: Counter,
    returned: Counter,
    lingering: Counter,
    missing: Counter,
}

impl CallCounters {
    pub(crate) fn count_keep_alive(&self, answer: &KeptAlive) {
        match answer {
            KeptAlive::Extended { .. } => self.kept_alive.inc(),
            KeptAlive::Failed => self.not_kept_alive.inc(),
            KeptAlive::Revoked(_) => self.revoked.inc(),
        };
    }

    /// Counts a batch of `keys` keep-alives.
    pub(crate) fn count_batch(&self, keys: usize, kept: &NotExtended) {
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
        let Self { attached, pushed } = Self::default();
        let help = "Streams of session control that are attached now";
        registry.register("attached_streams", help, attached.clone());
        let help = "Revocations that were pushed on attached streams";
        registry.register("pushes", help, pushed.clone());
        Self { attached, pushed }
    }
}

/// Raises a gauge by one until it is dropped.
#[derive(Debug)]
pub(crate) struct GaugeGuard(Gauge);

impl GaugeGuard {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Reports of usage by outcome, and the events in them.
#[derive(Clone, Debug)]
pub(crate) struct UsageCounters {
    by_method: Calls,
    counted: Counter,
    repeated: Counter,
    invalid: Counter,
    unavailable: Counter,
    events: Counter,
    skipped: [Counter; Uncountable::ALL.len()],
}

impl UsageCounters {
    fn register(registry: &mut Registry, by_method: &Calls) -> Self {
        let counted_as = outcomes(registry, "usage_reports", "Reports of usage by outcome");
        let events = Counter::default();
        registry.register("usage_events", "Events of usage that counted", events.clone());
        let skipped = Family::<Labels<1>, Counter>::default();
        let help =
            "Events of usage that were skipped, by reason, while the rest of their report counted";
        registry.register("usage_events_skipped", help, skipped.clone());
        let reason = |why: Uncountable| [("reason", why.as_str())];
        Self {
            skipped: Uncountable::ALL.map(|why| skipped.get_or_create_owned(&reason(why))),
            by_method: by_method.clone(),
            counted: counted_as("counted"),
            repeated: counted_as("repeated"),
            invalid: counted_as("invalid"),
            unavailable: counted_as("unavailable"),
            events,
        }
    }

    /// Counts a report of `events` events, of which some were skipped. Its handling `began` at that time.
    pub(crate) fn count(
        &self,
        reported: &Reported,
        events: u64,
        skipped: &Skipped,
        began: Instant,
    ) {
        self.by_method.answered(Method::Report, began);
        if reported.counted {
            self.counted.inc();
            self.events.inc_by(events.saturating_sub(skipped.iter().sum()));
            self.skipped.iter().zip(skipped).for_each(|(counter, events)| {
                counter.inc_by(*events);
            });
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
    /// The file came into force.
    pub(crate) applied: Counter,
    /// The file was invalid or missing, and the policy in force stayed.
    pub(crate) refused: Counter,
}

impl ReloadCounters {
    fn register(registry: &mut Registry) -> Self {
        let counter = outcomes(registry, "policy_reloads", "Reloads of the policy file by outcome");
        Self { applied: counter("applied"), refused: counter("refused") }
    }
}

/// Registers a family of counters by outcome, and returns its counter of each outcome.
fn outcomes(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> impl Fn(&'static str) -> Counter + use<> {
    let family = Family::<Labels<1>, Counter>::default();
    registry.register(name, help, family.clone());
    move |outcome| family.get_or_create_owned(&[("outcome", outcome)])
}

/// Values that do not change while a server runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) max_leases: u64,
    pub(crate) max_connections: u32,
    pub(crate) max_memory: u64,
    pub(crate) recovered_leases: usize,
    pub(crate) started_at: WallTime,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let borrows = Family::default();
        registry.register(
            "borrows",
            "Borrows by service, outcome and, for a reached limit, its scope",
            borrows.clone(),
        );
        let kept = outcomes(&mut registry, "keep_alives", "Keep-alives by outcome");
        let returned = outcomes(&mut registry, "returns", "Returns by outcome");
        let connections = Gauge::default();
        let help = "Connections of the gRPC port that are open now";
        registry.register("connections", help, connections.clone());
        let memory = Gauge::default();
        registry.register_with_unit(
            "connection_memory",
            "Memory that connections and calls in flight have reserved, of max_memory",
            Unit::Bytes,
            memory.clone(),
        );
        let by_method = Calls::register(&mut registry);
        let usage = UsageCounters::register(&mut registry, &by_method);
        let calls = CallCounters {
            by_method,
            kept_alive: kept("ttl_extended"),
            not_kept_alive: kept("failed"),
            revoked: kept("revoked"),
            returned: returned("returned"),
            lingering: returned("ttl_updated"),
            missing: returned("missing_key"),
        };
        let streams = StreamCounters::register(&mut registry);
        let reloads = ReloadCounters::register(&mut registry);
        let forwarded = Counter::default();
        let help = "Calls and streams that were passed on to the leader of the fleet";
        registry.register("forwarded", help, forwarded.clone());
        Self { registry, borrows, connections, memory, calls, streams, usage, reloads, forwarded }
    }

    /// The metrics of a server, with its facts and the metrics of its store.
    pub(crate) fn for_server(facts: &Facts, commits: &Commits) -> Self {
        let mut metrics = Self::new();
        let Facts { max_leases, max_connections, max_memory, recovered_leases, started_at } =
            *facts;
        let registry = &mut metrics.registry;
        for (name, help, value) in [
            ("max_leases", "The most leases of the server", max_leases),
            ("max_connections", "The most connections of the gRPC port", max_connections.into()),
            ("max_memory_bytes", "The most memory of connections and calls in flight", max_memory),
            ("recovered_leases", "Leases that the store recovered", recovered_leases as u64),
        ] {
            registry.register(name, help, ConstGauge::new(value));
        }
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The version of the server", Info::new(version));
        registry.register_with_unit(
            "start_time",
            "When the server started, in Unix time",
            Unit::Seconds,
            ConstGauge::new(started_at.as_unix()),
        );
        commits.register(registry);
        metrics
    }

    /// The counters of the service entry called `service`.
    pub(crate) fn borrows_of(&self, service: &str) -> BorrowCounters {
        let counter = |outcome: &str, scope: &str| {
            let labels = [("service", service), ("outcome", outcome), ("scope", scope)];
            self.borrows.get_or_create_owned(&labels.map(|(name, value)| (name, value.to_owned())))
        };
        BorrowCounters {
            borrowed: counter("borrowed", ""),
            observed: counter("observed", ""),
            denied: Scope::ALL.map(|scope| counter("denied", scope.as_str())),
            budget_spent: counter("budget_spent", ""),
            refused: counter("refused", ""),
            invalid: counter("invalid", ""),
            unavailable: counter("unavailable", ""),
            busy: counter("server_busy", "server"),
        }
    }
}
