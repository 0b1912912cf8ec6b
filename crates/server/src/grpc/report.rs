//! Reads reports of usage, the only calls whose messages may be large.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::caller::identify;
use super::compression::{Encoding, Gunzip, STEP, is_flagged};
use super::deadline::timeout;
use super::framing::{no_memory, too_large};
use super::route::REPORT;
use super::timed_body::{RequestBody, TimedBody};
use super::unary::{self, Answer, Body};
use super::usage::UsageReports;
use crate::blocking::blocking;
use crate::bounds::{InFlight, work_of};
use crate::config::PortLimits;
use crate::fleet::{Fleet, Outgoing, Over, Patience};
use crate::live::Live;

/// The most large reports at once, of all callers and of one caller. A report is large when it is larger
/// than other messages may be. The reports of one caller wait for each other first, so that a report
/// never waits for many reports of another caller.
const LARGE_AT_ONCE: usize = 4;
const LARGE_OF_ONE: usize = 1;

/// How many bytes of a large report are decompressed at a time, on a thread that may block.
const LARGE_STEP: usize = 1 << 20;

/// Reads reports and passes them on to be counted.
#[derive(Debug)]
pub(crate) struct Reports {
    usage: UsageReports,
    large: Large,
    limits: PortLimits,
    fleet: Option<Arc<Fleet>>,
}

/// The places for large reports.
#[derive(Debug)]
struct Large {
    all: Arc<Semaphore>,
    /// By the name of the indexer; the policy bounds the number of indexers.
    of_one: Mutex<HashMap<Option<Box<str>>, Arc<Semaphore>>>,
}

/// The place of one large report: among those of its caller, and among all. Dropping it frees the place.
type LargePlace = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Large {
    fn new() -> Self {
        Self { all: Arc::new(Semaphore::new(LARGE_AT_ONCE)), of_one: Mutex::default() }
    }

    /// Waits for a place. Cancellation safe.
    async fn place(&self, caller: Option<&str>) -> Result<LargePlace, Status> {
        let of_one = {
            let mut of_one = self.of_one.lock();
            let places = of_one.entry(caller.map(Into::into));
            places.or_insert_with(|| Arc::new(Semaphore::new(LARGE_OF_ONE))).clone()
        };
        let stopping = |_| Status::unavailable("the server is stopping");
        let of_one = of_one.acquire_owned().await.map_err(stopping)?;
        Ok((of_one, self.all.clone().acquire_owned().await.map_err(stopping)?))
    }
}

impl Reports {
    pub(crate) fn new(usage: UsageReports, limits: PortLimits, fleet: Option<Arc<Fleet>>) -> Self {
        Self { usage, large: Large::new(), limits, fleet }
    }

    /// Answers one Report call of an identified caller.
    pub(super) async fn answer<B: RequestBody>(
        &self,
        live: &Arc<ArcSwap<Live>>,
        request: Request<B>,
        call: &mut InFlight,
    ) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        // Large reports of one caller wait for each other.
        let caller = identify(&live.load().policy, &parts.headers)
            .map(|caller| caller.map(|caller| Box::<str>::from(caller.name())));
        let is_standby = self.fleet.as_ref().is_some_and(|fleet| !fleet.leads());
        let reported = match caller {
            // The policy of the leader decides.
            Err(_) if is_standby => {
                self.report(live.clone(), parts.headers, None, &mut body, call).await
            }
            Ok(caller) => {
                self.report(live.clone(), parts.headers, caller.as_deref(), &mut body, call).await
            }
            Err(status) => Err(status),
        };
        reported.map_or_else(|status| unary::refuse(self.usage.refused(status)), Answer::into_http)
    }

    async fn report<B: RequestBody>(
        &self,
        live: Arc<ArcSwap<Live>>,
        metadata: HeaderMap,
        caller: Option<&str>,
        body: &mut B,
        call: &mut InFlight,
    ) -> Result<Answer, Status> {
        let (message, place) = self.read(caller, body, call).await?;
        let encoding = Encoding::of(&metadata);
        let (mut message, place) = self.decompress(caller, message, encoding, place, call).await?;
        if let Some(fleet) = &self.fleet
            && !fleet.leads()
        {
            let (from, timeout) = ((call.connection().peer(), caller), timeout(&metadata));
            let report =
                Outgoing::new(fleet, (REPORT, Over::Stream), &metadata, message, from, timeout);
            if let Some(answer) = fleet.pass_on(&report, &mut Patience::new(timeout)).await? {
                return Ok(Answer::from(answer));
            }
            message = report.into_message();
        }
        let large = place.is_some();
        let usage = self.usage.clone();
        let apply = move || {
            // The policy may have changed in the meantime.
            let live = live.load();
            let caller = identify(&live.policy, &metadata)?;
            let place = place.map(|place| Box::new(place) as Box<dyn Any + Send>);
            usage.report(&live, caller, &metadata, message, place)
        };
        // A large report takes many milliseconds, so it must not run on a thread that serves calls.
        let applied = if large { blocking(apply).await } else { apply() };
        applied?.await
    }

    /// Reads the message, and waits for a place for it if it is large.
    async fn read<B: RequestBody>(
        &self,
        caller: Option<&str>,
        body: &mut B,
        call: &mut InFlight,
    ) -> Result<(Bytes, Option<LargePlace>), Status> {
        let mut message = BytesMut::new();
        let mut place = None;
        let (most, large) = (self.limits.max_report_bytes, self.limits.max_message_bytes);
        let mut body = TimedBody::new(body, self.limits.request_timeout);
        while let Some(data) = body.data().await? {
            let length = message.len() + data.len();
            if length > most as usize {
                return Err(too_large(most as usize));
            }
            if length > large as usize && place.is_none() {
                place = Some(self.large.place(caller).await?);
            }
            call.take(data.len()).map_err(no_memory)?;
            message.extend_from_slice(&data);
        }
        Ok((message.freeze(), place))
    }

    /// Decompresses the message, and waits for a place for it if it is large then.
    async fn decompress(
        &self,
        caller: Option<&str>,
        message: Bytes,
        encoding: Encoding,
        mut place: Option<LargePlace>,
        call: &mut InFlight,
    ) -> Result<(Bytes, Option<LargePlace>), Status> {
        if !is_flagged(&message) {
            return Ok((message, place));
        }
        let most = self.limits.max_report_bytes as usize;
        let mut gunzip = Gunzip::of(message, encoding, most)?;
        loop {
            let large = gunzip.len() + STEP > self.limits.max_message_bytes as usize;
            if large && place.is_none() {
                place = Some(self.large.place(caller).await?);
            }
            let step = if large { LARGE_STEP } else { STEP };
            call.take(step).map_err(no_memory)?;
            let is_done;
            if large {
                // This takes many milliseconds, so it must not run on a thread that serves calls.
                let stepped = blocking(move || gunzip.step(step).map(|is_done| (gunzip, is_done)));
                (gunzip, is_done) = stepped.await?;
            } else {
                call.connection().share().count(work_of(step));
                is_done = gunzip.step(step)?;
            }
            if is_done {
                return Ok((gunzip.finish(), place));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_large_report_does_not_stand_behind_many_of_another_caller() {
        let large = Large::new();
        let (west, east) = (Some("west"), Some("east"));
        let held = large.place(west).await.unwrap();
        let mut waiting: Vec<_> = (0..16).map(|_| Box::pin(large.place(west))).collect();
        for place in &mut waiting {
            assert!(place.as_mut().now_or_never().is_none(), "one of its own is there");
        }
        let others: Vec<_> = [east, None].into_iter().map(|by| large.place(by)).collect();
        for place in others {
            assert!(place.now_or_never().is_some_and(|place| place.is_ok()));
        }
        drop(held);
        let next = waiting.remove(0).await;
        assert!(next.is_ok() && waiting.remove(0).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_fixed_number_of_large_reports_of_all_callers_is_read_at_once() {
        let large = Large::new();
        let names: Vec<String> = (0..=LARGE_AT_ONCE).map(|name| name.to_string()).collect();
        let mut held = Vec::new();
        for name in &names[1..] {
            held.push(large.place(Some(name)).await.unwrap());
        }
        let mut last = Box::pin(large.place(Some(&names[0])));
        assert!(last.as_mut().now_or_never().is_none());
        held.pop();
        assert!(last.await.is_ok());
    }
}
