//! The metrics page, which Prometheus reads.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use lease::{End, Ends, Reason};
use policy::{DEFAULT_SERVICE, Policy, Service};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::admin::state::Admin;
use crate::blocking::blocking;
use crate::metrics::format::Format;
use crate::metrics::{Metrics, PREFIX};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    service: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    how: &'static str,
    reason: &'static str,
}

/// Values that are read when the page is requested, and not counted before.
pub(super) struct CurrentValues<'a> {
    pub(super) policy: &'a Policy,
    pub(super) ready: bool,
    pub(super) dropped_log_lines: u64,
    /// How long the commit in flight has taken.
    pub(super) stalled: Duration,
    /// When the certificate of the gRPC port expires, in Unix time.
    pub(super) certificate_not_after: Option<i64>,
    /// `None` when the store cannot be read.
    pub(super) leases: Option<Leases>,
}

/// The leases of the store.
pub(super) struct Leases {
    live_by_service: Vec<(Box<str>, u64)>,
    ends: Ends,
}

/// Answers with all metrics, also while the store has failed.
pub(super) async fn page(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let format = Format::accepted(&headers);
    let leases = match (admin.store.live().await, admin.store.ends().await) {
        (Ok(live_by_service), Ok(ends)) => Some(Leases { live_by_service, ends }),
        _ => None,
    };
    // The page is long when the policy has many services.
    let encoded = blocking(move || {
        let live = admin.live.load();
        let not_after = admin.certificate_not_after.as_deref();
        let page = admin.metrics.encode(CurrentValues {
            policy: &live.policy,
            ready: admin.store.ready().is_ok(),
            dropped_log_lines: admin.dropped_log_lines.load(Ordering::Relaxed),
            stalled: admin.store.stalled(),
            certificate_not_after: not_after.map(|time| time.load(Ordering::Relaxed)),
            leases,
        });
        page.map(|page| format.convert(page))
    });
    match encoded.await {
        Ok(page) => {
            let headers = [(CONTENT_TYPE, format.media_type()), (VARY, "accept")];
            (headers, page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

impl Metrics {
    /// Encodes all metrics in the text format of OpenMetrics.
    pub(super) fn encode(&self, values: CurrentValues<'_>) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode_registry(&mut page, &self.registry)?;
        text::encode_registry(&mut page, &values.registry())?;
        text::encode_eof(&mut page)?;
        Ok(page)
    }
}

impl CurrentValues<'_> {
    /// Registers the values for one page only, so that a service that is removed leaves no value
    /// behind.
    fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register(
            "store_ready",
            "Whether the store takes changes: 0 after a failed write until a restart, and while a \
             commit takes longer than two seconds",
            ConstGauge::new(i64::from(self.ready)),
        );
        registry.register(
            "log_lines_dropped",
            "Log lines that were dropped because nobody read those before them",
            ConstCounter::new(self.dropped_log_lines),
        );
        registry.register_with_unit(
            "commit_stalled",
            "How long the commit under way has taken; 0 when none is",
            Unit::Seconds,
            ConstGauge::new(self.stalled.as_secs_f64()),
        );
        if let Some(not_after) = self.certificate_not_after {
            registry.register_with_unit(
                "certificate_not_after",
                "When the certificate of the gRPC port expires, in Unix time",
                Unit::Seconds,
                ConstGauge::new(not_after),
            );
        }
        let summary = self.policy.summary();
        registry.register(
            "limit",
            "Limits of each service entry: of the total, of an organization, of an API key",
            limits(summary.services),
        );
        if let Some(Leases { live_by_service, ends }) = &self.leases {
            let help = "Leases that count now, by service";
            registry.register("live_leases", help, live_leases(self.policy, live_by_service));
            let help = "Leases that ended, by how and, for revoked ones, why";
            registry.register("leases_ended", help, leases_ended(ends));
        }
        registry
    }
}

/// The limits of the services. A limit that is absent has no value.
fn limits(services: &[Service]) -> Family<LimitLabels, Gauge> {
    let family = Family::<LimitLabels, Gauge>::default();
    for service in services {
        let kinds = [
            ("total", service.limits.service),
            ("organization", service.limits.organization),
            ("api_key", service.limits.api_key),
        ];
        for (kind, limit) in kinds {
            let Some(limit) = limit else { continue };
            let labels = LimitLabels { service: service.name.to_string(), kind };
            family.get_or_create(&labels).set(gauge_value(limit));
        }
    }
    family
}

/// Live leases by service entry. The entry `default` has those of services without an entry.
fn live_leases(policy: &Policy, live: &[(Box<str>, u64)]) -> Family<ServiceLabel, Gauge> {
    let mut by_label: BTreeMap<&str, u64> = policy.services().map(|name| (name, 0)).collect();
    for (service, leases) in live {
        let label = if policy.has_entry(service) { service } else { DEFAULT_SERVICE };
        *by_label.entry(label).or_default() += leases;
    }
    let family = Family::<ServiceLabel, Gauge>::default();
    for (service, leases) in by_label {
        let label = ServiceLabel { service: service.to_owned() };
        family.get_or_create(&label).set(gauge_value(leases));
    }
    family
}

fn leases_ended(ends: &Ends) -> Family<EndLabels, Counter> {
    let family = Family::<EndLabels, Counter>::default();
    for end in End::ALL {
        family.get_or_create(&end_labels(end)).inc_by(ends.of(end));
    }
    family
}

const fn end_labels(end: End) -> EndLabels {
    let (how, reason) = match end {
        End::Returned => ("returned", ""),
        End::Lingered => ("lingered", ""),
        End::Expired => ("expired", ""),
        End::WithSession => ("with_session", ""),
        End::Revoked(reason) => (
            "revoked",
            match reason {
                Reason::Operator => "operator",
                Reason::OrganizationDisabled => "organization_disabled",
                Reason::ApiKeyDisabled => "api_key_disabled",
                Reason::BudgetSpent => "budget_spent",
            },
        ),
    };
    EndLabels { how, reason }
}

fn gauge_value(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
