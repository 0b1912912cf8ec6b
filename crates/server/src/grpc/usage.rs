//! `sf.gateway.payment.v1.UsageService`: counts usage against the budgets of organizations.

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use http::header::HeaderMap;
use lease::{BudgetSpent, MAX_METRICS, Reason, Report, ReportRefusal, Submission, Uncountable};
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use wire::metering::Event;
use wire::payment::ReportResponse;

pub(crate) use wire::payment::usage_service_server::SERVICE_NAME as USAGE_SERVICE;

mod skipped;

use policy::{Indexer, Policy};
use store::{ReportError, Skipped, Store, UsageReport};

use crate::grpc::framing;
use crate::grpc::unary::Answer;
use crate::headers::{EVENTS_SKIPPED, IDEMPOTENCY_KEY};
use crate::live::Live;
use crate::metrics::UsageCounters;
use skipped::SkippedLog;

/// The field numbers of the events of a report, and of the metrics of an event.
const EVENTS: u32 = 1;
const METRICS: u32 = 20;

/// The most organizations in the reasons of one answer.
const MAX_REASONS: usize = 8;

/// `UsageService` over a store.
#[derive(Clone, Debug)]
pub(crate) struct UsageReports {
    store: Arc<Store>,
    counters: UsageCounters,
    max_events: usize,
    skipped: Arc<SkippedLog>,
}

impl UsageReports {
    /// Accepts reports of at most `max_events` events.
    pub(crate) fn new(store: Arc<Store>, counters: UsageCounters, max_events: u32) -> Self {
        Self { store, counters, max_events: max_events as usize, skipped: Arc::default() }
    }

    /// Report. Counting has started when this returns; the future waits for the answer.
    ///
    /// Reading a large report takes milliseconds, so it must not run on a thread that serves calls.
    /// `until_counted` is dropped once the report is counted, also when the future is dropped.
    ///
    /// # Errors
    ///
    /// `INVALID_ARGUMENT` when the report cannot be read, has too many events, or has an invalid
    /// idempotency key; then nothing is counted. An event that cannot be counted is skipped.
    pub(crate) fn report(
        &self,
        live: &Live,
        caller: Option<&Indexer>,
        metadata: &HeaderMap,
        body: Bytes,
        until_counted: Option<Box<dyn Any + Send>>,
    ) -> Result<impl Future<Output = Result<Answer, Status>> + Send + use<>, Status> {
        let began = Instant::now();
        let idempotency_key = idempotency_key(metadata)?.map(Into::into);
        let read = ParsedReport::from(&framing::message(body)?, live, self.max_events)?;
        let ParsedReport { report, organizations, disabled, events, mut skipped } = read;
        let caller = caller.map(|caller| caller.name().into());
        let submission = Submission { caller, idempotency_key, report, organizations };
        let policy = live.policy.clone();
        let reported = self.store.report(UsageReport { submission, policy, until_counted });
        let (counters, log) = (self.counters.clone(), self.skipped.clone());
        Ok(async move {
            let reported = reported.await.map_err(refused)?;
            skipped.iter_mut().zip(reported.skipped).for_each(|(sum, more)| *sum += more);
            counters.count(&reported, events, &skipped, began);
            let answer = Answer::new(&response(&disabled, &reported.spent));
            // The store counts skipped amounts, and an event may have several.
            let number = skipped.iter().sum::<u64>().min(events);
            if number == 0 {
                return Ok(answer);
            }
            if reported.counted {
                log.add(number, &skipped);
            }
            Ok(answer.metadata(EVENTS_SKIPPED, number))
        })
    }

    /// Counts a refused report and returns its status.
    pub(crate) fn refused(&self, status: Status) -> Status {
        self.counters.count_refused(&status);
        status
    }
}

fn refused(error: ReportError) -> Status {
    let message = error.to_string();
    match error {
        ReportError::Refused(ReportRefusal::Invalid(_) | ReportRefusal::KeyReused) => {
            Status::invalid_argument(message)
        }
        ReportError::Refused(ReportRefusal::MemoryFull(_)) | ReportError::Unavailable(_) => {
            Status::unavailable(message)
        }
    }
}

fn idempotency_key(metadata: &HeaderMap) -> Result<Option<&str>, Status> {
    let key = metadata.get(IDEMPOTENCY_KEY).map(|value| value.to_str());
    key.transpose().map_err(|_| Status::invalid_argument(format!("{IDEMPOTENCY_KEY} is no text")))
}

/// A report that was read.
struct ParsedReport {
    report: Report,
    /// The organizations with budgets, in the order reported.
    organizations: Vec<Box<str>>,
    /// Some of the organizations that are disabled, and why.
    disabled: Vec<(Box<str>, Reason)>,
    events: u64,
    skipped: Skipped,
}

impl ParsedReport {
    /// Reads a report event by event. Decoded at once, it would need a hundred times its size on the
    /// wire.
    fn from(message: &[u8], live: &Live, max_events: usize) -> Result<Self, Status> {
        let mut events = 0;
        for event in FieldValues::of(message, EVENTS) {
            event?;
            events += 1;
        }
        if events > max_events {
            let problem = format!("events are {events}, and may be {max_events}");
            return Err(Status::invalid_argument(problem));
        }
        let mut report = Report::builder();
        let mut read = Self {
            report: Report::builder().build(),
            organizations: Vec::new(),
            disabled: Vec::new(),
            events: events as u64,
            skipped: Skipped::default(),
        };
        let mut seen: HashSet<Box<str>> = HashSet::new();
        let mut unreadable = None;
        for event in FieldValues::of(message, EVENTS) {
            let event = event?;
            // The report checks this too. Here it bounds the memory of the decoded event.
            let metrics = FieldValues::of(event, METRICS).take(MAX_METRICS + 1).count();
            if metrics > MAX_METRICS {
                read.skipped[Uncountable::TooManyMetrics as usize] += 1;
                continue;
            }
            let event = match Event::decode(event) {
                Ok(event) => event,
                Err(error) => {
                    read.skipped[Uncountable::Unreadable as usize] += 1;
                    unreadable = Some(error);
                    continue;
                }
            };
            let metrics: Vec<_> =
                event.metrics.iter().map(|metric| (&*metric.key, metric.value)).collect();
            // Without an organization `add` refuses the event.
            let organization = live.organization(&event.organization_id).unwrap_or_default();
            let added = report.add(organization, &event.api_key_id, &metrics);
            if let Err(why) = added {
                read.skipped[why as usize] += 1;
            } else if !seen.contains(organization) {
                seen.insert(organization.into());
                read.add_to_answer(organization, &live.policy);
            }
        }
        // If not one event can be read, the message is no report.
        match unreadable {
            Some(error) if read.skipped[Uncountable::Unreadable as usize] == read.events => {
                Err(framing::unreadable(error))
            }
            _ => {
                read.report = report.build();
                Ok(read)
            }
        }
    }

    /// Adds the organization to the answer, which says whether it may continue. An event that counts
    /// nothing adds its organization too.
    fn add_to_answer(&mut self, organization: &str, policy: &Policy) {
        if !policy.organization_budgets(organization).is_empty() {
            self.organizations.push(organization.into());
        }
        if self.disabled.len() <= MAX_REASONS {
            let reason = policy.disabled(organization, "");
            self.disabled.extend(reason.map(|reason| (organization.into(), reason)));
        }
    }
}

/// Iterates over the encoded values of one repeated field of a message.
struct FieldValues<'a> {
    rest: &'a [u8],
    field: u32,
}

impl<'a> FieldValues<'a> {
    const fn of(message: &'a [u8], field: u32) -> Self {
        Self { rest: message, field }
    }

    fn next_in(&mut self) -> Result<Option<&'a [u8]>, Status> {
        while self.rest.has_remaining() {
            let (tag, wire_type) = decode_key(&mut self.rest).map_err(framing::unreadable)?;
            if tag != self.field || wire_type != WireType::LengthDelimited {
                skip_field(wire_type, tag, &mut self.rest, DecodeContext::default())
                    .map_err(framing::unreadable)?;
                continue;
            }
            let length = decode_varint(&mut self.rest).map_err(framing::unreadable)?;
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some((content, rest)) = self.rest.split_at_checked(length) else {
                return Err(Status::invalid_argument(
                    "the message cannot be read: it is cut short",
                ));
            };
            self.rest = rest;
            return Ok(Some(content));
        }
        Ok(None)
    }
}

impl<'a> Iterator for FieldValues<'a> {
    type Item = Result<&'a [u8], Status>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_in().transpose();
        if let Some(Err(_)) = next {
            self.rest = &[];
        }
        next
    }
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

#[cfg(test)]
mod tests {
    use store::SystemClock;
    use wire::metering::Metric;
    use wire::payment::ReportRequest;

    use super::*;
    use crate::metrics::Metrics;
    use crate::refusals::RefusalLog;

    fn event(organization: &str, metrics: usize) -> Event {
        let metrics = (0..metrics).map(|key| Metric { key: key.to_string(), value: 1.0 });
        let organization_id = organization.to_owned();
        Event { organization_id, metrics: metrics.collect(), ..Event::default() }
    }

    fn read(message: &[u8]) -> Result<ParsedReport, Status> {
        let refusals = Arc::new(RefusalLog::new(Arc::new(SystemClock::new())));
        ParsedReport::from(
            message,
            &Live::new(Policy::default(), &Metrics::new(), refusals, None),
            3,
        )
    }

    #[test]
    fn a_report_is_read_event_by_event() {
        let meta = "m".repeat(300);
        let events = vec![event("a", 3), Event { meta, ..event("b", 64) }, event("a", 65)];
        let message = ReportRequest { events }.encode_to_vec();
        let read = read(&message).unwrap();
        assert_eq!((read.events, read.report.len()), (3, 67));
        assert_eq!(read.skipped[Uncountable::TooManyMetrics as usize], 1);
        assert_eq!(read.skipped.iter().sum::<u64>(), 1);
    }

    #[test]
    fn a_message_that_is_cut_short_or_no_report_is_an_invalid_argument() {
        let message = ReportRequest { events: vec![event("acme", 2)] }.encode_to_vec();
        for length in 1..message.len() {
            let status = read(&message[..length]).err().unwrap();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{length}");
        }
        // A length that is larger than memory, and a field of a group that never ends.
        for wrong in [&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f][..], &[0x13]] {
            assert_eq!(read(wrong).err().unwrap().code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn an_event_that_cannot_be_read_is_skipped_and_a_message_without_any_other_is_no_report() {
        // An organization that is not UTF-8, and a metric that is cut short.
        let wrong: [&[u8]; 2] = [b"\x0a\x02\xff\xff", b"\xa2\x01\x05\x0a"];
        let with = |events: &[&[u8]]| {
            let mut message = Vec::new();
            for event in events {
                prost::encoding::encode_key(EVENTS, WireType::LengthDelimited, &mut message);
                prost::encoding::encode_varint(event.len() as u64, &mut message);
                message.extend_from_slice(event);
            }
            message
        };
        let right = event("acme", 2).encode_to_vec();
        let read_some = read(&with(&[wrong[0], &right, wrong[1]])).unwrap();
        assert_eq!((read_some.events, read_some.report.len()), (3, 2));
        assert_eq!(read_some.skipped[Uncountable::Unreadable as usize], 2);
        for none in [&wrong[..1], &wrong[1..], &wrong] {
            assert_eq!(read(&with(none)).err().unwrap().code(), tonic::Code::InvalidArgument);
        }
    }

    #[test]
    fn one_event_of_a_million_metrics_is_skipped_unread() {
        // A million empty metrics in 3 MB. In memory, each of them would take 32 bytes.
        let metrics = [0xa2, 0x01, 0x00].repeat(1 << 20);
        let mut message = vec![0x0a];
        prost::encoding::encode_varint(metrics.len() as u64, &mut message);
        message.extend(metrics);
        let read = read(&message).unwrap();
        assert_eq!((read.report.len(), read.skipped.iter().sum::<u64>()), (0, 1));
    }

    #[test]
    fn only_a_spent_budget_is_answered_as_resource_exhausted() {
        let memory = lease::Remembers::IdempotencyKeys;
        let full = lease::MemoryFull { memory, indexer: Some("west".into()), most: 7 };
        let status = refused(ReportError::Refused(ReportRefusal::MemoryFull(full)));
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("7 idempotency keys of indexer \"west\""), "{status}");
        let status = refused(ReportError::Refused(ReportRefusal::KeyReused));
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}
