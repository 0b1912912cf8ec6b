//! Answers the calls of a link, on which a standby passes the calls of its callers on to this leader.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::str;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use parking_lot::Mutex;
use store::Delivery;
use store::fleet::LeaderId;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::route::PoolCall;
use super::timed_body::RequestBody;
use super::unary::{self, Answer, Body, ForCall as _};
use crate::bounds::{Connection, InFlight};
use crate::fleet::{Fleet, Outbox, Record, Records, Sent, Unreadable, Word, answer_not_leading};

/// What a record may have beside its message: the metadata of a call, which the standby bounds too.
const BESIDE_MESSAGE: usize = 128 << 10;

/// A link whose standby reads no answers is ended when so many bytes of them wait.
const MOST_WAITING: usize = 8 << 20;

/// What answers the calls of links.
pub(super) trait AnswersCalls: Send + Sync + 'static {
    /// Answers a call to the worker pool. Its message has no more bytes than any other.
    fn answer_linked(
        &self,
        method: PoolCall,
        headers: &HeaderMap,
        message: Bytes,
        call: &mut InFlight,
    ) -> impl Future<Output = Result<Answer, Status>> + Send;
}

/// Opens a link whose records arrive in `body`. `call` is the stream of the link. A message has at most
/// `most_bytes`. Once `stopping` is cancelled, the standby is asked to end the link.
pub(super) fn open<A: AnswersCalls, B: RequestBody>(
    answering: Arc<A>,
    fleet: Arc<Fleet>,
    (most_bytes, stopping): (usize, CancellationToken),
    body: B,
    call: InFlight,
) -> Response<Body> {
    let Some(term) = fleet.own_term() else {
        return unary::refuse(answer_not_leading()).for_call(call);
    };
    let (connection, answers) = (call.connection().clone(), Arc::<Outbox>::default());
    let sent = tonic::body::Body::new(Sent(answers.clone()));
    let link = Linked { answering, fleet, connection, answers, term, calls: Mutex::default() };
    let records = Records::new(most_bytes + BESIDE_MESSAGE);
    tokio::spawn(Arc::new(link).read(body, records, stopping));
    let mut response = Response::new(Body::stream(sent));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.for_call(call)
}

/// One link. The answers end when nobody holds it.
struct Linked<A> {
    answering: Arc<A>,
    fleet: Arc<Fleet>,
    connection: Arc<Connection>,
    answers: Arc<Outbox>,
    /// The term that the calls are meant for.
    term: LeaderId,
    calls: Mutex<HashMap<u64, Call>>,
}

/// A call of which the standby has not told yet what became of it.
enum Call {
    Running(AbortHandle),
    /// A borrow that was granted.
    Granted(Delivery),
}

impl<A: AnswersCalls> Linked<A> {
    /// Reads records until the link ends.
    async fn read<B: RequestBody>(
        self: Arc<Self>,
        mut body: B,
        mut records: Records,
        stopping: CancellationToken,
    ) {
        let mut stopping = Some(stopping);
        let problem = loop {
            let stop = async {
                match &stopping {
                    Some(stopping) => stopping.cancelled().await,
                    None => std::future::pending().await,
                }
            };
            let frame = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
            let data = tokio::select! {
                biased;
                frame = frame => match frame {
                    Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                    Some(Err(error)) => break error.to_string(),
                    None => return self.end(),
                },
                () = stop => {
                    stopping = None;
                    self.answers.push(|fields| fields.word(Word::Stopping));
                    continue;
                }
            };
            if self.answers.len() > MOST_WAITING {
                break "the answers are not read".to_owned();
            }
            records.arrived(&data);
            if let Err(error) = self.take(&mut records) {
                break error.to_string();
            }
        };
        tracing::debug!(problem, "a link of another server broke");
        self.end();
    }

    fn take(self: &Arc<Self>, records: &mut Records) -> Result<(), Unreadable> {
        let is_current = self.fleet.own_term() == Some(self.term);
        while let Some(record) = records.next()? {
            if record.is_word() {
                self.finish(record.call, record.is(Word::HandedOn));
            } else {
                self.begin(record, is_current);
            }
        }
        Ok(())
    }

    /// Begins a call.
    fn begin(self: &Arc<Self>, mut record: Record, is_current: bool) {
        let mut headers = record.take_metadata();
        let Record { call: number, path, peer, indexer, message, .. } = record;
        let method = str::from_utf8(&path).ok().and_then(PoolCall::at);
        let Some(method) = method.filter(|_| is_current) else {
            let status = match method {
                Some(_) => answer_not_leading(),
                None => Status::unimplemented("there is no such method"),
            };
            return self.answer(number, Err(status));
        };
        let indexer = indexer.as_deref().and_then(|name| str::from_utf8(name).ok());
        let in_flight = self.connection.begin_on_behalf(address(&peer), indexer, &mut headers);
        let link = self.clone();
        // The task waits until its handle is there.
        let mut calls = self.calls.lock();
        let task = tokio::spawn(link.run(number, method, headers, message, in_flight));
        calls.insert(number, Call::Running(task.abort_handle()));
    }

    async fn run(
        self: Arc<Self>,
        number: u64,
        method: PoolCall,
        headers: HeaderMap,
        message: Bytes,
        mut in_flight: InFlight,
    ) {
        let answer = if in_flight.has_too_many_fields() {
            Err(Status::unknown("the call has too many header fields"))
        } else {
            self.answering.answer_linked(method, &headers, message, &mut in_flight).await
        };
        self.answer(number, answer);
    }

    /// Answers a call. A lease that was granted waits for a word of the standby.
    fn answer(&self, number: u64, answer: Result<Answer, Status>) {
        let (metadata, message) = match answer {
            Ok(answer) => {
                let (metadata, message, delivery) = answer.into_parts();
                let mut calls = self.calls.lock();
                if let Some(delivery) = delivery {
                    // Where the call is not there any more, its caller is gone: the lease is taken back.
                    if let Some(call) = calls.get_mut(&number) {
                        *call = Call::Granted(delivery);
                    }
                } else {
                    calls.remove(&number);
                }
                (metadata, message)
            }
            Err(status) => {
                self.calls.lock().remove(&number);
                (status.into_http::<()>().into_parts().0.headers, Bytes::new())
            }
        };
        self.answers.push(|fields| {
            fields.call(number);
            for (name, value) in &metadata {
                fields.header(name, value);
            }
            fields.message(&message);
        });
    }

    /// The caller has the answer of a call, or is gone.
    fn finish(&self, number: u64, is_handed_on: bool) {
        let call = self.calls.lock().remove(&number);
        match call {
            // The lease is taken back, if it was granted.
            Some(Call::Running(task)) => task.abort(),
            Some(Call::Granted(delivery)) if is_handed_on => delivery.complete(),
            // The lease is taken back.
            Some(Call::Granted(delivery)) => drop(delivery),
            None => {}
        }
    }

    /// The standby says nothing more. The callers of answers that were sent may have their leases: these
    /// end one TTL later if nobody keeps them alive.
    fn end(&self) {
        for (_, call) in std::mem::take(&mut *self.calls.lock()) {
            match call {
                Call::Running(task) => task.abort(),
                Call::Granted(delivery) => delivery.complete(),
            }
        }
    }
}

impl<A> Drop for Linked<A> {
    fn drop(&mut self) {
        self.answers.end();
    }
}

/// The address with these octets.
fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}
