//! A link: one HTTP/2 stream on which a standby passes many calls on to the leader.
//!
//! A stream for each call would cost as much as the call itself at both ends. On a link a call is one
//! record, and the records of calls that come together are sent together.

mod outbox;
mod records;

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use connect::grpc::was_not_handled;
use connect::{Connection, NotConnected};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tonic::Status;
use tower::Service as _;

pub(crate) use outbox::{Outbox, Sent};
pub(crate) use records::{Fields, Record, Records, Unreadable, Word};

/// The path of a link.
pub(crate) const LINK: &str = "/tgm.session.fleet.v1.Fleet/Link";

/// How long a leader may take to answer a call after its term.
pub(super) const ANSWER_AFTER_TERM: Duration = Duration::from_secs(1);

/// A link takes no more calls while so many bytes wait, because the leader reads nothing. The record of a call
/// that was given up waits too.
const MOST_WAITING: usize = 4 << 20;

/// The most bytes of an answer with its metadata.
const MOST_BYTES: usize = 5 << 20;

/// A link to the leader of one term. It ends when the last call on it is over, and nobody holds it or the
/// leader is stopping.
pub(super) struct Link(Arc<Shared>);

/// What a link and the task that reads its answers share.
#[derive(Default)]
struct Shared {
    calls: Arc<Outbox>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The number of the last call.
    last: u64,
    /// The calls of which the leader does not know yet what became of them.
    open: usize,
    /// The calls that wait for an answer, and whether they count once however often they are sent.
    answers: HashMap<u64, (oneshot::Sender<Record>, bool)>,
    /// Whether the link takes no more calls, because the leader is stopping.
    is_stopping: bool,
    /// Whether it takes no more calls, because another server leads.
    is_replaced: bool,
    /// Why the link is lost.
    lost: Option<Lost>,
}

/// Why a call on a link has no answer.
#[derive(Clone, Debug)]
pub(super) enum Lost {
    /// The leader has certainly not handled it.
    NotHandled(Status),
    /// The leader may have handled it.
    Unknown(Status),
    /// The leader may have handled it, and another server leads now.
    Replaced,
}

/// The answer to a call. It may have the status of a refusal in its metadata.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) metadata: HeaderMap,
    pub(super) message: Bytes,
    pub(super) handed_on: HandedOn,
}

/// Tells the leader that the caller got the answer of a borrow. If it is dropped instead, it tells that
/// the caller is gone, and the leader takes the lease back.
#[derive(Debug)]
pub(crate) struct HandedOn {
    link: Arc<Link>,
    call: u64,
    word: Option<Word>,
}

impl HandedOn {
    /// Tells that the caller got the answer.
    pub(crate) fn complete(mut self) {
        self.word = Some(Word::HandedOn);
    }

    /// Nothing is told: the answer granted nothing.
    pub(super) fn forget(mut self) {
        self.word = None;
    }
}

impl Drop for HandedOn {
    fn drop(&mut self) {
        self.link.0.over(self.call, self.word);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    /// Opens a link by `request`, over `connection`. Calls need not wait until it is open.
    ///
    /// When `replaced` resolves, another server leads. A leader that hands over answers what it has begun,
    /// and one that hangs answers no more. So calls that may be repeated are lost at once, and the others a
    /// second later.
    pub(super) fn open(
        connection: Connection,
        request: Request<()>,
        replaced: impl Future<Output = ()> + Send + 'static,
    ) -> Arc<Self> {
        let shared = Arc::<Shared>::default();
        let request = request.map(|()| tonic::body::Body::new(Sent(shared.calls.clone())));
        let reader = shared.clone();
        tokio::spawn(async move {
            let mut reads = pin!(reader.read_answers(connection, request));
            let lost = tokio::select! {
                lost = &mut reads => lost,
                () = replaced => {
                    reader.replace();
                    timeout(ANSWER_AFTER_TERM, reads).await.unwrap_or(Lost::Replaced)
                }
            };
            reader.lose(lost);
        });
        Arc::new(Self(shared))
    }

    /// Whether it takes another call.
    pub(super) fn is_open(&self) -> bool {
        self.0.state.lock().refusal().is_none()
    }

    /// Passes the call on whose fields `write` writes, and waits for its answer. Dropping the future
    /// cancels the call. `may_be_repeated` says whether it counts once however often it is sent.
    ///
    /// # Errors
    ///
    /// [`Lost`] tells whether the leader may have handled the call.
    pub(super) async fn call(
        self: &Arc<Self>,
        may_be_repeated: bool,
        write: impl FnOnce(&mut Fields<'_>),
    ) -> Result<Answered, Lost> {
        let (sender, answer) = oneshot::channel();
        let call = self.0.begin(sender, may_be_repeated)?;
        let handed_on = HandedOn { link: self.clone(), call, word: Some(Word::CallerGone) };
        self.0.calls.push(|fields| {
            fields.call(call);
            write(fields);
        });
        match answer.await {
            Ok(mut answer) => {
                let metadata = answer.take_metadata();
                Ok(Answered { metadata, message: answer.message, handed_on })
            }
            Err(_) => {
                handed_on.forget();
                Err(self.0.state.lock().lost.clone().unwrap_or(Lost::Replaced))
            }
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.0.calls.end();
    }
}

impl State {
    /// Why the link takes no more calls.
    fn refusal(&self) -> Option<Lost> {
        if let Some(lost) = &self.lost {
            return Some(lost.clone());
        }
        let gone = || Lost::NotHandled(Status::unavailable("the leader stops or is replaced"));
        (self.is_stopping || self.is_replaced).then(gone)
    }

    /// Whether nothing more will be sent.
    const fn is_over(&self) -> bool {
        self.is_stopping && self.open == 0
    }
}

impl Shared {
    /// Begins a call, whose answer `sender` gets. Returns its number.
    fn begin(&self, sender: oneshot::Sender<Record>, may_be_repeated: bool) -> Result<u64, Lost> {
        if self.calls.len() > MOST_WAITING {
            let problem = Status::unavailable("the leader of the fleet does not read its calls");
            return Err(Lost::NotHandled(problem));
        }
        let mut state = self.state.lock();
        state.refusal().map_or(Ok(()), Err)?;
        state.last += 1;
        state.open += 1;
        let call = state.last;
        state.answers.insert(call, (sender, may_be_repeated));
        Ok(call)
    }

    /// A call is over. The leader is told this word of it, if any.
    fn over(&self, call: u64, word: Option<Word>) {
        let mut state = self.state.lock();
        state.answers.remove(&call);
        state.open -= 1;
        // The lock is held: another call must not end the link before this word.
        if let Some(word) = word
            && state.lost.is_none()
        {
            self.calls.push(|fields| {
                fields.call(call);
                fields.word(word);
            });
        }
        if state.is_over() {
            self.calls.end();
        }
    }

    /// Opens the link, and gives each answer to its call. Returns why there are no more.
    async fn read_answers(
        &self,
        mut connection: Connection,
        request: Request<tonic::body::Body>,
    ) -> Lost {
        let answer = match connection.call(request).await {
            Ok(answer) => answer,
            Err(status) => return Lost::before_an_answer(status),
        };
        let (head, mut body) = answer.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers) {
            return Lost::NotHandled(status);
        }
        if head.status != StatusCode::OK {
            let problem = format!("the leader opens no link: HTTP status {}", head.status);
            return Lost::NotHandled(Status::unavailable(problem));
        }
        let mut records = Records::new(MOST_BYTES);
        while let Some(frame) = body.frame().await {
            let data = match frame.map(|frame| frame.into_data()) {
                Ok(Ok(data)) => data,
                Ok(Err(_)) => break,
                Err(status) => return Lost::Unknown(status),
            };
            records.arrived(&data);
            loop {
                match records.next() {
                    Ok(Some(answer)) => self.answer(answer),
                    Ok(None) => break,
                    Err(error) => return Lost::Unknown(Status::unavailable(error.to_string())),
                }
            }
        }
        Lost::Unknown(Status::unavailable("the leader has ended the link"))
    }

    fn answer(&self, answer: Record) {
        let mut state = self.state.lock();
        state.is_stopping |= answer.is(Word::Stopping);
        let (waiting, is_over) = (state.answers.remove(&answer.call), state.is_over());
        drop(state);
        if is_over {
            self.calls.end();
        }
        if let Some((waiting, _)) = waiting {
            // The caller may have gone just now; then it says so.
            let _ = waiting.send(answer);
        }
    }

    /// Another server leads: ends the calls that wait and may be repeated.
    fn replace(&self) {
        let mut state = self.state.lock();
        state.is_replaced = true;
        state.answers.retain(|_, (_, may_be_repeated)| !*may_be_repeated);
    }

    /// Ends all calls that wait.
    fn lose(&self, lost: Lost) {
        let mut state = self.state.lock();
        state.lost = Some(lost);
        let waiting = std::mem::take(&mut state.answers);
        drop(state);
        drop(waiting);
    }
}

impl Lost {
    /// The link had no answer at all.
    pub(super) fn before_an_answer(status: Status) -> Self {
        let source = std::error::Error::source(&status);
        let is_connected = source.is_none_or(|source| !source.is::<NotConnected>());
        if is_connected && !was_not_handled(&status) {
            Self::Unknown(status)
        } else {
            Self::NotHandled(status)
        }
    }
}

#[cfg(test)]
mod tests {
    use connect::Connector;
    use futures_util::FutureExt as _;

    use super::*;

    /// A link over a connection that is never made.
    fn link() -> Arc<Link> {
        let never = Connector::Own(Arc::new(|| Box::pin(std::future::pending())));
        let request = Request::post("http://localhost/").body(()).unwrap();
        Link::open(Connection::new(never), request, std::future::pending())
    }

    #[tokio::test]
    async fn a_link_whose_leader_reads_nothing_takes_no_more_calls_in_the_end() {
        let link = link();
        let message = vec![7; 64 << 10];
        // Each caller gives up at once.
        let call = || link.call(true, |fields| fields.message(&message)).now_or_never();
        let taken = (0..1_000).take_while(|_| call().is_none()).count();
        assert!((50..100).contains(&taken), "{taken}");
        assert!(matches!(call(), Some(Err(Lost::NotHandled(_)))));
        assert!(link.0.calls.len() < MOST_WAITING + (1 << 20));
    }

    #[tokio::test]
    async fn a_link_to_a_leader_that_stops_ends_after_its_last_call() {
        let link = link();
        let mut sent = Sent(link.0.calls.clone());
        let mut call = Box::pin(link.call(true, |fields| fields.path("/path")));
        assert!(call.as_mut().now_or_never().is_none());
        assert!(sent.frame().now_or_never().flatten().is_some(), "the call is sent");
        let stopping = Record { word: Word::Stopping as u32, ..Record::default() };
        link.0.answer(stopping);
        let refused = link.call(true, |_| {}).now_or_never();
        assert!(matches!(refused, Some(Err(Lost::NotHandled(_)))), "{refused:?}");
        assert!(sent.frame().now_or_never().is_none(), "the link waits for the call");
        drop(call);
        assert!(sent.frame().now_or_never().flatten().is_some(), "its caller is gone");
        assert!(matches!(sent.frame().now_or_never(), Some(None)), "the link has ended");
    }
}
