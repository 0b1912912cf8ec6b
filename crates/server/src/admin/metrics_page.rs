//! The metrics page, which Prometheus reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use lease::{End, Ends, Reason};
use policy::{DEFAULT_SERVICE, Policy, Service};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use store::{Store, Unavailable};

use super::api::fleet::alive;
use crate::admin::state::Admin;
use crate::blocking::blocking;
use crate::metrics::format::Format;
use crate::metrics::{Labels, PREFIX};

/// Answers with all metrics, also while the store has failed.
pub(super) async fn page(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    let format = Format::accepted(&headers);
    let leases = match (admin.store.live().await, admin.store.ends().await) {
        (Ok(live_by_service), Ok(ends)) => Some((live_by_service, ends)),
        _ => None,
    };
    // The page is long when the policy has many services.
    let encoded = blocking(move || {
        let mut page = String::new();
        text::encode_registry(&mut page, &admin.operator.metrics.registry)?;
        text::encode_registry(&mut page, &current_values(&admin, leases))?;
        text::encode_eof(&mut page)?;
        Ok::<_, fmt::Error>(format.convert(page))
    });
    match encoded.await {
        Ok(page) => {
            let headers = [(CONTENT_TYPE, format.media_type()), (VARY, "accept")];
            (headers, page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// The live leases by service, and the ended ones.
type Leases = (Vec<(Box<str>, u64)>, Ends);

/// Registers values that are read when the page is requested, for one page only, so that a service that
/// is removed leaves no value behind. `leases` is `None` when the store cannot be read.
fn current_values(admin: &Admin, leases: Option<Leases>) -> Registry {
    let live = admin.live.load();
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register(
        "store_ready",
        "Whether the store takes changes: 0 after a failed write until a restart, and while a \
         commit takes longer than two seconds. 1 on a standby",
        ConstGauge::new(i64::from(matches!(
            admin.store.ready(),
            Ok(()) | Err(Unavailable::Standby)
        ))),
    );
    registry.register(
        "log_lines_dropped",
        "Log lines that were dropped because too many waited to be read",
        ConstCounter::new(admin.operator.config.dropped_log_lines.load(Ordering::Relaxed)),
    );
    registry.register_with_unit(
        "commit_stalled",
        "How long the commit in flight has taken; 0 without one",
        Unit::Seconds,
        ConstGauge::new(admin.store.stalled().as_secs_f64()),
    );
    register_fleet(&mut registry, &admin.store);
    if let Some(not_after) = &admin.certificate_not_after {
        registry.register_with_unit(
            "certificate_not_after",
            "When the certificate of the gRPC port expires, in Unix time",
            Unit::Seconds,
            ConstGauge::new(not_after.load(Ordering::Relaxed)),
        );
    }
    registry.register(
        "limit",
        "Limits of each service entry: of the total, of an organization, of an API key",
        limits(live.policy.summary().services),
    );
    if let Some((live_by_service, ends)) = &leases {
        let help = "Leases that count now, by service";
        registry.register("live_leases", help, live_leases(&live.policy, live_by_service));
        let help = "Leases that ended, by how and, for revoked ones, why";
        registry.register("leases_ended", help, leases_ended(ends));
    }
    registry
}

/// Registers who leads, where servers share the store.
fn register_fleet(registry: &mut Registry, store: &Store) {
    let Some((_, leader)) = store.fleet() else { return };
    registry.register(
        "leader",
        "Whether this server leads its fleet and serves: 1 or 0",
        ConstGauge::new(i64::from(store.leads())),
    );
    let members = store.members();
    registry.register(
        "fleet_servers",
        "The servers of the fleet that have written to the database within ten seconds",
        ConstGauge::new(gauge_value(alive(&members).count() as u64)),
    );
    let policies: BTreeSet<_> =
        alive(&members).map(|it| &it.policy_hash).filter(|hash| !hash.is_empty()).collect();
    registry.register(
        "fleet_policies",
        "How many different policies these servers have",
        ConstGauge::new(gauge_value(policies.len() as u64)),
    );
    // Each takeover has the next epoch.
    let led = members.iter().filter_map(|member| member.led);
    let epoch = leader.borrow().as_ref().map(|leader| leader.epoch).into_iter().chain(led).max();
    if let Some(epoch) = epoch {
        let help = "How often the leader of the fleet has changed since its database was made";
        registry.register("leader_changes", help, ConstCounter::new(epoch));
    }
}

/// The limits of the services. A limit that is absent has no value.
fn limits(services: &[Service]) -> Family<[(&'static str, String); 2], Gauge> {
    let family = Family::<[_; 2], Gauge>::default();
    for service in services {
        let kinds = [
            ("total", service.limits.service),
            ("organization", service.limits.organization),
            ("api_key", service.limits.api_key),
        ];
        for (kind, limit) in kinds {
            let Some(limit) = limit else { continue };
            let labels = [("service", service.name.to_string()), ("kind", kind.to_owned())];
            family.get_or_create(&labels).set(gauge_value(limit));
        }
    }
    family
}

/// Live leases by service entry. The entry `default` has those of services without an entry.
fn live_leases(
    policy: &Policy,
    live: &[(Box<str>, u64)],
) -> Family<[(&'static str, String); 1], Gauge> {
    let mut by_label: BTreeMap<&str, u64> = policy.services().map(|name| (name, 0)).collect();
    for (service, leases) in live {
        let label = if policy.has_entry(service) { service } else { DEFAULT_SERVICE };
        *by_label.entry(label).or_default() += leases;
    }
    let family = Family::<[_; 1], Gauge>::default();
    for (service, leases) in by_label {
        family.get_or_create(&[("service", service.to_owned())]).set(gauge_value(leases));
    }
    family
}

fn leases_ended(ends: &Ends) -> Family<Labels<2>, Counter> {
    let family = Family::<Labels<2>, Counter>::default();
    for end in End::ALL {
        let (how, reason) = match end {
            End::Returned => ("returned", ""),
            End::Lingered => ("lingered", ""),
            End::Expired => ("expired", ""),
            End::WithSession => ("with_session", ""),
            End::Revoked(Reason::Operator) => ("revoked", "operator"),
            End::Revoked(Reason::OrganizationDisabled) => ("revoked", "organization_disabled"),
            End::Revoked(Reason::ApiKeyDisabled) => ("revoked", "api_key_disabled"),
            End::Revoked(Reason::BudgetSpent) => ("revoked", "budget_spent"),
        };
        family.get_or_create(&[("how", how), ("reason", reason)]).inc_by(ends.of(end));
    }
    family
}

fn gauge_value(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
