//! A borrow of a caller: its tries, and what is returned when the caller drops it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::connect::grpc;
use lease::BorrowId;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::core::{Asked, BorrowAnswer, DEFAULT_TTL, Target, backoff};
use super::driver::{Shared, in_runtime, now};
use super::wire;
use crate::error::Error;
use crate::held::Lease;
use crate::request::{Ids, OnError};

/// The pauses between the tries of one borrow double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a caller borrows.
pub(crate) enum Wanted {
    Session { ids: Ids },
    Worker { session: u64, service: Arc<str>, max_per_session: u32 },
}

/// How long a borrow may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// With retries after faults.
    pub(crate) timeout: Duration,
    /// In addition, while a limit is reached.
    pub(crate) wait: Duration,
    /// Whether the pool admits borrows by itself while the server is away.
    pub(crate) fail_open: bool,
}

/// Borrows what is wanted. It may be dropped at any point: a lease that was granted is returned.
pub(crate) async fn borrow(
    shared: &Arc<Shared>,
    wanted: Wanted,
    on_error: Option<OnError>,
    patience: Patience,
) -> Result<Arc<Lease>, Error> {
    // The names are those of OpenTelemetry, if it has one.
    let span = tracing::debug_span!(
        "borrow",
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.service = "sf.worker.v1.WorkerPool",
        rpc.method = "BorrowWorker",
        rpc.grpc.status_code = Empty,
        service = Empty,
        organization = Empty,
        trace = Empty,
        lease = Empty,
        error = Empty,
    );
    let borrowing = borrow_or_wait(shared, wanted, on_error, patience).instrument(span.clone());
    let borrowed = in_runtime(pin!(borrowing)).await;
    match &borrowed {
        Ok(lease) => {
            span.record("lease", lease.number());
            span.record("rpc.grpc.status_code", 0);
        }
        Err(error) => {
            span.record("error", tracing::field::display(error));
            span.record("rpc.grpc.status_code", i32::from(error.code()));
            shared.note(|core| core.stats.denied.count(error));
        }
    }
    borrowed
}

async fn borrow_or_wait(
    shared: &Arc<Shared>,
    wanted: Wanted,
    mut on_error: Option<OnError>,
    patience: Patience,
) -> Result<Arc<Lease>, Error> {
    let give_up = Instant::now() + patience.wait;
    let mut failures = 0;
    loop {
        let error = match InFlight::begin(shared, &wanted) {
            Ok(borrow) => match borrow.finish(&mut on_error, patience).await {
                Ok(lease) => return Ok(lease),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let left = give_up.saturating_duration_since(Instant::now());
        if !error.is_limit() || left.is_zero() {
            return Err(error);
        }
        sleep(next_pause(&mut failures).min(left)).await;
    }
}

/// One borrow that the core counts as in flight, until this is dropped.
struct InFlight<'a> {
    shared: &'a Arc<Shared>,
    asked: Asked,
    id: BorrowId,
    /// Whether the server may hold a lease for this borrow id whose grant did not arrive.
    doubt: bool,
    /// Whether the core has a lease for it.
    is_granted: bool,
}

impl<'a> InFlight<'a> {
    fn begin(shared: &'a Arc<Shared>, wanted: &Wanted) -> Result<Self, Error> {
        let asked = shared.note(|core| match wanted {
            Wanted::Session { ids } => core.begin_session(ids, now()),
            Wanted::Worker { session, service, max_per_session } => {
                core.begin_worker(*session, service, *max_per_session)
            }
        })?;
        let span = Span::current();
        span.record("service", &*asked.ids.service);
        span.record("organization", &*asked.ids.organization);
        span.record("trace", &*asked.ids.trace);
        let id = BorrowId(rand::random());
        Ok(Self { shared, asked, id, doubt: false, is_granted: false })
    }

    /// Tries until the server grants or refuses, or the timeout passes.
    async fn finish(
        mut self,
        on_error: &mut Option<OnError>,
        patience: Patience,
    ) -> Result<Arc<Lease>, Error> {
        let Patience { timeout, fail_open, .. } = patience;
        let deadline = Instant::now() + timeout;
        let mut failures = 0;
        let mut fault = None;
        loop {
            if fail_open && self.shared.tell(|core, now| core.fails_open(timeout, now)) {
                return self.admit(on_error);
            }
            let error = match self.attempt(on_error, deadline).await {
                Ok(lease) => return Ok(lease),
                Err(Try::Final(error)) => return Err(error),
                // The error of a try that the deadline ended says less than the one before.
                Err(Try::Fault(error)) => {
                    fault.take().filter(|_| Instant::now() >= deadline).unwrap_or(error)
                }
            };
            if self.shared.note(|core| core.is_closing()) {
                return Err(Error::Closed);
            }
            let again = Instant::now() + next_pause(&mut failures);
            if again >= deadline {
                return if fail_open { self.admit(on_error) } else { Err(error) };
            }
            tracing::debug!(%error, "a borrow failed and is tried again");
            self.shared.note(|core| core.stats.retried += 1);
            fault = Some(error);
            sleep_until(again).await;
        }
    }

    /// Lets the pool admit the borrow by itself.
    fn admit(mut self, on_error: &mut Option<OnError>) -> Result<Arc<Lease>, Error> {
        let borrowing = self.doubt.then_some(self.id);
        let on_error = on_error.take();
        let lease =
            self.shared.tell(|core, now| core.admit(&self.asked, on_error, borrowing, now))?;
        self.is_granted = true;
        Ok(lease)
    }

    async fn attempt(
        &mut self,
        on_error: &mut Option<OnError>,
        deadline: Instant,
    ) -> Result<Arc<Lease>, Try> {
        let sent = Instant::now();
        let doubted = std::mem::replace(&mut self.doubt, true);
        let left = deadline.saturating_duration_since(sent);
        let sent = sent.into_std();
        let answer = grpc::within(left, self.shared.remote.borrow(&self.asked, self.id)).await;
        let mut answer = wire::borrow(answer, &self.asked);
        if let Some(key) = answer.take_key() {
            let target = Target::Key(key.into());
            self.shared.tell(|core, now| core.stray(target, DEFAULT_TTL, now));
        }
        match answer {
            BorrowAnswer::Granted(grant) => {
                // All tries have one id, and one id gets one lease.
                self.doubt = false;
                self.is_granted = true;
                let on_error = on_error.take();
                self.shared
                    .tell(|core, now| core.handle_grant(&self.asked, on_error, grant, sent, now))
                    .map_err(Try::Final)
            }
            BorrowAnswer::Refused { error, .. } => {
                self.doubt = doubted;
                self.shared.tell(|core, now| core.handle_link(true, now));
                Err(Try::Final(error))
            }
            BorrowAnswer::Invalid { error, .. } => {
                self.doubt = doubted;
                Err(Try::Final(error))
            }
            BorrowAnswer::IdUsed(error) => {
                // The lease of the old id, if any, is returned by that id.
                let used = std::mem::replace(&mut self.id, BorrowId(rand::random()));
                self.doubt = false;
                self.shared.tell(|core, now| {
                    core.handle_link(true, now);
                    core.stray(Target::Borrow(used), DEFAULT_TTL, now);
                });
                Err(Try::Fault(error))
            }
            // Another try with this session URL does not help, and this is no outage.
            BorrowAnswer::Fault { error: error @ Error::InvalidArgument { .. }, sent } => {
                self.doubt = doubted || sent;
                Err(Try::Final(error))
            }
            BorrowAnswer::Fault { error, sent } => {
                self.doubt = doubted || sent;
                self.shared.tell(|core, now| core.handle_link(false, now));
                Err(Try::Fault(error))
            }
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.is_granted {
            return;
        }
        self.shared.tell(|core, now| {
            if self.doubt {
                core.stray(Target::Borrow(self.id), DEFAULT_TTL, now);
            }
            core.end_borrow(&self.asked, now);
        });
    }
}

/// Why a try failed.
enum Try {
    /// Another try does not help.
    Final(Error),
    /// Another try may help.
    Fault(Error),
}

/// Returns the pause after the next failure, and counts it.
fn next_pause(failures: &mut u32) -> Duration {
    *failures = failures.saturating_add(1);
    backoff(*failures, FIRST_PAUSE, LONGEST_PAUSE, &mut rand::rng())
}
