//! `sf.gateway.payment.v1.UsageService`: what organizations used, counted against their budgets.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName};
use lease::{BudgetSpent, Invalid, Reason, Usage, validate_id};
use tonic::Status;
use wire::metering::{Event, Metric};
use wire::payment::{ReportRequest, ReportResponse};

pub(crate) use wire::payment::usage_service_server::SERVICE_NAME as USAGE_SERVICE;

use crate::admin::metrics::UsageCounters;
use crate::live::Live;
use crate::policy::{Indexer, Policy};
use crate::rpc::{Answer, decode};
use crate::store::{ReportError, Store};

/// Names a report, so that it counts once however often it is sent.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("x-idempotency-key");

/// Most events of one report.
const MAX_EVENTS: usize = 10_000;

/// Most metrics of one event.
const MAX_METRICS: usize = 64;

/// Most different metrics of different organizations in one report, all of which are one change of
/// the store.
const MAX_AMOUNTS: usize = 50_000;

/// Most organizations that one answer gives reasons for.
const MAX_REASONS: usize = 8;

/// `UsageService` over a store.
#[derive(Debug)]
pub(crate) struct UsageReports<S> {
    store: Arc<S>,
    counters: UsageCounters,
}

impl<S> Clone for UsageReports<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), counters: self.counters.clone() }
    }
}

impl<S: Store> UsageReports<S> {
    pub(crate) fn new(store: Arc<S>, counters: UsageCounters) -> Self {
        Self { store, counters }
    }

    /// Report. It is applied when this returns; the future waits for the answer.
    ///
    /// A large report takes milliseconds, so it is no work for a thread that serves calls.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` naming the field that cannot be what it is; nothing is counted then.
    pub(crate) fn report(
        &self,
        live: &Live,
        caller: Option<&Indexer>,
        metadata: &HeaderMap,
        message: Bytes,
    ) -> Result<impl Future<Output = Result<Answer, Status>> + Send + use<S>, Status> {
        let began = Instant::now();
        let key = idempotency_key(metadata)?;
        let message = decode_report(message)?;
        let (usages, organizations) = amounts(&message.events, &live.policy)?;
        let disabled = organizations.into_iter().filter_map(|organization| {
            let reason = live.policy.disabled(organization, "")?;
            Some((Box::<str>::from(organization), reason))
        });
        let disabled: Vec<_> = disabled.take(MAX_REASONS + 1).collect();
        let caller = caller.map(Indexer::name);
        let reported = self.store.report(caller, key, &usages, &live.policy);
        let counters = self.counters.clone();
        let events = message.events.len() as u64;
        Ok(async move {
            let reported = reported.await.map_err(|error| match error {
                ReportError::Invalid(problem) => Status::invalid_argument(problem.to_string()),
                ReportError::Unavailable(error) => Status::unavailable(error.to_string()),
            })?;
            counters.count(&reported, events, began);
            Ok(Answer::new(&response(&disabled, &reported.spent)))
        })
    }

    /// Counts a report that was refused, and hands its status on.
    pub(crate) fn refused(&self, status: Status) -> Status {
        self.counters.count_refused(&status);
        status
    }
}

/// A report of which only the number of events is known: read, an event takes up a hundred times
/// what it may have on the wire.
#[derive(Clone, PartialEq, prost::Message)]
struct Unread {
    #[prost(message, repeated, tag = "1")]
    events: Vec<UnreadEvent>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UnreadEvent {}

fn decode_report(message: Bytes) -> Result<ReportRequest, Status> {
    let Unread { events } = decode(message.clone())?;
    if events.len() > MAX_EVENTS {
        let problem = format!("events are {}, and may be {MAX_EVENTS}", events.len());
        return Err(Status::invalid_argument(problem));
    }
    decode(message)
}

fn idempotency_key(metadata: &HeaderMap) -> Result<Option<&str>, Status> {
    let key = metadata.get(IDEMPOTENCY_KEY).map(|value| value.to_str());
    key.transpose().map_err(|_| Status::invalid_argument(format!("{IDEMPOTENCY_KEY} is no text")))
}

/// What the events say, summed up by organization and metric, and their organizations.
fn amounts<'a>(
    events: &'a [Event],
    policy: &'a Policy,
) -> Result<(Vec<Usage<'a>>, Vec<&'a str>), Status> {
    let (mut sums, mut places) = (Vec::new(), HashMap::new());
    let (mut organizations, mut seen) = (Vec::new(), HashSet::new());
    for (number, event) in events.iter().enumerate() {
        validate(event)
            .map_err(|problem| Status::invalid_argument(format!("events[{number}].{problem}")))?;
        let organization = &*event.organization_id;
        if seen.insert(organization) {
            organizations.push(organization);
        }
        let amounts = event.metrics.iter().map(|metric| (&*metric.key, metric.value));
        // An event that counts nothing asks all the same whether its organization may go on.
        let budgets = policy.organization_budgets(organization);
        let asked = budgets.first().filter(|_| event.metrics.is_empty());
        for (metric, value) in amounts.chain(asked.map(|budget| (&*budget.metric, 0.0))) {
            let sum = *places.entry((organization, metric)).or_insert_with(|| {
                sums.push(Usage { organization, metric, value: 0.0 });
                sums.len() - 1
            });
            // The sum of finite amounts may be infinite.
            sums[sum].value = (sums[sum].value + value).min(f64::MAX);
        }
    }
    if sums.len() > MAX_AMOUNTS {
        let problem = format!("events have {} different metrics of organizations", sums.len());
        return Err(Status::invalid_argument(format!("{problem}, and may have {MAX_AMOUNTS}")));
    }
    Ok((sums, organizations))
}

/// The problem with `event`, if there is one, as it goes on after `events[0].`.
fn validate(event: &Event) -> Result<(), String> {
    validate_id("organization_id", &event.organization_id, true).map_err(|it| it.to_string())?;
    validate_id("api_key_id", &event.api_key_id, false).map_err(|it| it.to_string())?;
    if event.metrics.len() > MAX_METRICS {
        return Err(format!("metrics are {}, and may be {MAX_METRICS}", event.metrics.len()));
    }
    for (place, Metric { key, value }) in event.metrics.iter().enumerate() {
        let sound = validate_id("key", key, true);
        let sound = sound.and_then(|()| match value.is_finite() && *value >= 0.0 {
            true => Ok(()),
            false => Err(Invalid { field: "value", problem: "is negative or not finite" }),
        });
        sound.map_err(|problem| format!("metrics[{place}].{problem}"))?;
    }
    Ok(())
}

fn response(disabled: &[(Box<str>, Reason)], spent: &[(Box<str>, BudgetSpent)]) -> ReportResponse {
    let disabled = disabled.iter().map(|(name, reason)| format!("organization {name:?}: {reason}"));
    let spent = spent.iter().map(|(name, spent)| format!("organization {name:?}: {spent}"));
    let mut reasons: Vec<_> = disabled.chain(spent).collect();
    let revoked = !reasons.is_empty();
    if reasons.len() > MAX_REASONS {
        reasons.truncate(MAX_REASONS);
        reasons.push("and more".to_owned());
    }
    ReportResponse { revoked, revocation_reason: reasons.join("; ") }
}
