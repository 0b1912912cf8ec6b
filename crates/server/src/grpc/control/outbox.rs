//! The queue of events to send on one attached stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::task::AtomicWaker;
use lease::{LeaseId, Reason, RevokedFor};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use store::{Listener, NotExtended};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tonic::Status;
use wire::control::attach_response::Event as WireEvent;
use wire::control::{
    AttachResponse, BatchAnswer, Draining, Reason as WireReason, Revocation, RevokedPlace,
};

use crate::bounds::Connection;

/// The most answers that may wait for the reader. A client has only a few batches in flight.
const MAX_ANSWERS: usize = 64;

/// The most revocations that may wait for the reader, about 3 MB. A disabled organization may have as
/// many leases on one stream, all revoked before the reader can read.
const MAX_PUSHES: usize = 65_536;

/// A bounded queue of events for a client.
///
/// Adding an event never waits. If the queue is full, the client does not read: the queue is cleared
/// and the stream is ended, which ends no lease.
#[derive(Debug)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    reader: AtomicWaker,
    /// Cancelled when the queue has overflowed.
    overflowed: CancellationToken,
    /// Cancelled when the reader was dropped.
    abandoned: CancellationToken,
    pushed: Counter,
    /// The connection that accounts for the memory of the events.
    connection: Option<Arc<Connection>>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    answers: usize,
    pushes: usize,
    /// The memory of the events.
    bytes: usize,
    /// How the stream ends after these events: the client has ended it, or the server ends it with a
    /// status. If it is set, no events are added.
    end: Option<Result<(), Status>>,
}

/// An event to send, in a compact form.
#[derive(Debug)]
enum Event {
    Answer(Box<(u64, NotExtended)>),
    Revoked(LeaseId, RevokedFor),
    /// An event of the leader of the fleet, and its bytes.
    PassedOn(Box<WireEvent>, usize),
    /// Dropping the token says that the notice was read.
    Draining(#[expect(dead_code, reason = "held until the notice is read")] TaskTrackerToken),
}

impl Event {
    /// The memory of the event while it waits.
    fn bytes(&self) -> usize {
        let lists = match self {
            Self::Answer(answer) => {
                let NotExtended { failed, revoked, unavailable } = &answer.1;
                size_of_val(&**answer)
                    + size_of_val(&**failed)
                    + size_of_val(&**revoked)
                    + size_of_val(&**unavailable)
            }
            Self::PassedOn(event, bytes) => size_of_val(&**event) + bytes,
            Self::Revoked(..) | Self::Draining(_) => 0,
        };
        size_of::<Self>() + lists
    }
}

impl Outbox {
    /// Returns an outbox and its reader. `pushed` counts revocations; `connection` accounts for the
    /// memory.
    pub(super) fn new(pushed: Counter, connection: Option<Arc<Connection>>) -> (Arc<Self>, Reader) {
        let outbox = Arc::new(Self {
            queue: Mutex::default(),
            reader: AtomicWaker::new(),
            overflowed: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            pushed,
            connection,
        });
        (outbox.clone(), Reader(outbox))
    }

    /// Adds the answer to a batch.
    pub(super) fn answer(&self, batch: u64, kept: NotExtended) {
        self.add(Event::Answer(Box::new((batch, kept))));
    }

    /// Adds an event that the leader of the fleet has sent.
    pub(super) fn pass_on(&self, event: WireEvent) {
        let bytes = match &event {
            WireEvent::Answer(answer) => answer.encoded_len(),
            WireEvent::Revoked(revocation) => {
                self.pushed.inc();
                revocation.encoded_len()
            }
            WireEvent::Draining(_) => 0,
        };
        self.add(Event::PassedOn(Box::new(event), bytes));
    }

    /// Adds the notice that the server is about to stop. `taken` is dropped when it was read.
    pub(super) fn announce(&self, taken: TaskTrackerToken) {
        self.add(Event::Draining(taken));
    }

    /// Ends the stream once the reader has read the events in the queue.
    pub(super) fn close(&self, end: Result<(), Status>) {
        self.queue.lock().end.get_or_insert(end);
        self.reader.wake();
    }

    /// Waits until the queue has overflowed.
    pub(super) async fn overflowed(&self) {
        self.overflowed.cancelled().await;
    }

    /// Waits until the reader was dropped, before or after the end of the stream.
    pub(super) async fn abandoned(&self) {
        self.abandoned.cancelled().await;
    }

    fn add(&self, event: Event) {
        let mut queue = self.queue.lock();
        if queue.end.is_some() {
            return;
        }
        let bytes = event.bytes();
        let (waiting, most) = match event {
            Event::Answer(_) => (&mut queue.answers, MAX_ANSWERS),
            Event::PassedOn(ref event, _) if matches!(**event, WireEvent::Answer(_)) => {
                (&mut queue.answers, MAX_ANSWERS)
            }
            Event::Revoked(..) | Event::PassedOn(..) => (&mut queue.pushes, MAX_PUSHES),
            Event::Draining(_) => (&mut 0, 1),
        };
        let has_memory =
            || self.connection.as_ref().is_none_or(|it| it.memory().take(bytes).is_ok());
        if *waiting < most && has_memory() {
            *waiting += 1;
            queue.bytes += bytes;
            queue.events.push_back(event);
            drop(queue);
        } else {
            let status = Status::unavailable("the stream is not read, and too much waits on it");
            self.clear(&mut queue, Err(status));
            drop(queue);
            self.overflowed.cancel();
        }
        self.reader.wake();
    }

    /// Drops all events.
    fn clear(&self, queue: &mut Queue, end: Result<(), Status>) {
        self.give_back(queue.bytes);
        *queue = Queue { end: Some(end), ..Queue::default() };
    }

    fn give_back(&self, bytes: usize) {
        if let Some(connection) = &self.connection {
            connection.memory().give_back(bytes);
        }
    }

    fn take(&self) -> Poll<Option<Result<AttachResponse, Status>>> {
        let mut queue = self.queue.lock();
        let event = queue.events.pop_front();
        let bytes = event.as_ref().map_or(0, Event::bytes);
        queue.bytes -= bytes;
        self.give_back(bytes);
        let event = match event {
            Some(Event::Answer(answer)) => {
                queue.answers -= 1;
                let (batch, kept) = *answer;
                WireEvent::Answer(answer_to_wire(batch, kept))
            }
            Some(Event::Revoked(id, why)) => {
                queue.pushes -= 1;
                WireEvent::Revoked(Revocation {
                    worker_key: id.to_string(),
                    reason: reason_to_wire(why.reason).into(),
                    message: why.to_string(),
                })
            }
            Some(Event::PassedOn(event, _)) => {
                match &*event {
                    WireEvent::Answer(_) => queue.answers -= 1,
                    WireEvent::Revoked(_) | WireEvent::Draining(_) => queue.pushes -= 1,
                }
                *event
            }
            Some(Event::Draining(_)) => WireEvent::Draining(Draining {}),
            None => {
                let Some(end) = &mut queue.end else { return Poll::Pending };
                return Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err));
            }
        };
        Poll::Ready(Some(Ok(AttachResponse { event: Some(event) })))
    }
}

impl Listener for Outbox {
    fn revoked(&self, id: LeaseId, why: RevokedFor) {
        self.pushed.inc();
        self.add(Event::Revoked(id, why));
    }
}

/// The reading end of an outbox. It is dropped with the stream.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Outbox>);

impl Stream for Reader {
    type Item = Result<AttachResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Registered before the check, so that an event that is added after it is not missed.
        self.0.reader.register(context.waker());
        self.0.take()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.clear(&mut self.0.queue.lock(), Ok(()));
        self.0.abandoned.cancel();
    }
}

fn answer_to_wire(batch: u64, kept: NotExtended) -> BatchAnswer {
    let NotExtended { failed, revoked, unavailable } = kept;
    let revoked = revoked.into_iter().map(|(place, why)| RevokedPlace {
        place,
        reason: reason_to_wire(why.reason).into(),
        message: why.to_string(),
    });
    BatchAnswer { batch, failed, revoked: revoked.collect(), unavailable }
}

fn reason_to_wire(reason: Reason) -> WireReason {
    match reason {
        Reason::Operator => WireReason::Operator,
        Reason::OrganizationDisabled => WireReason::OrganizationDisabled,
        Reason::ApiKeyDisabled => WireReason::ApiKeyDisabled,
        Reason::BudgetSpent => WireReason::BudgetSpent,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};
    use tokio_util::task::TaskTracker;
    use tonic::Code;

    use super::*;

    fn lease(serial: u64) -> LeaseId {
        LeaseId::new(0, serial, [7; 12])
    }

    fn next(reader: &mut Reader) -> Option<Option<Result<WireEvent, Status>>> {
        let next = reader.next().now_or_never()?;
        Some(next.map(|event| event.map(|response| response.event.unwrap())))
    }

    #[test]
    fn events_are_read_in_order_and_then_the_end() {
        let (outbox, mut reader) = Outbox::new(Counter::default(), None);
        assert!(next(&mut reader).is_none(), "nothing yet");
        outbox.answer(1, NotExtended { failed: vec![3], ..NotExtended::default() });
        outbox.revoked(lease(5), Reason::BudgetSpent.into());
        outbox.close(Err(Status::unavailable("enough")));
        outbox.answer(2, NotExtended::default());
        let WireEvent::Answer(answer) = next(&mut reader).unwrap().unwrap().unwrap() else {
            panic!("not the answer")
        };
        assert_eq!((answer.batch, answer.failed), (1, vec![3]));
        let WireEvent::Revoked(revoked) = next(&mut reader).unwrap().unwrap().unwrap() else {
            panic!("not the revocation")
        };
        assert_eq!(revoked.worker_key, lease(5).to_string());
        assert_eq!(revoked.reason(), WireReason::BudgetSpent);
        let end = next(&mut reader).unwrap().unwrap().unwrap_err();
        assert_eq!(end.code(), Code::Unavailable);
        assert!(next(&mut reader).unwrap().is_none());
    }

    #[test]
    fn an_outbox_that_nobody_reads_overflows_and_keeps_nothing() {
        let (outbox, mut reader) = Outbox::new(Counter::default(), None);
        for serial in 0..MAX_PUSHES as u64 {
            outbox.revoked(lease(serial), Reason::Operator.into());
        }
        outbox.answer(1, NotExtended::default());
        assert!(outbox.overflowed().now_or_never().is_none());
        outbox.revoked(lease(0), Reason::Operator.into());
        assert!(outbox.overflowed().now_or_never().is_some());
        assert_eq!(outbox.queue.lock().events.capacity(), 0);
        let end = next(&mut reader).unwrap().unwrap().unwrap_err();
        assert_eq!(end.code(), Code::Unavailable);
    }

    #[test]
    fn a_read_event_makes_room_again() {
        let (outbox, mut reader) = Outbox::new(Counter::default(), None);
        for batch in 0..10 * MAX_ANSWERS as u64 {
            outbox.answer(batch, NotExtended::default());
            assert!(next(&mut reader).unwrap().unwrap().is_ok());
        }
        assert!(outbox.overflowed().now_or_never().is_none());
    }

    #[test]
    fn a_notice_counts_as_taken_when_it_was_read_or_nobody_is_left_to_read_it() {
        let notices = TaskTracker::new();
        let (read, mut reader) = Outbox::new(Counter::default(), None);
        let (unread, gone) = Outbox::new(Counter::default(), None);
        read.announce(notices.token());
        unread.announce(notices.token());
        assert_eq!(notices.len(), 2);
        assert!(matches!(next(&mut reader), Some(Some(Ok(WireEvent::Draining(_))))));
        assert_eq!(notices.len(), 1);
        drop(gone);
        assert_eq!(notices.len(), 0);
        assert!(unread.abandoned().now_or_never().is_some());
    }
}
