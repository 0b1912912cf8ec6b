use std::pin::pin;

use futures_util::stream;
use policy::Policy;
use store::SystemClock;
use store::{Options, Recovered};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use wire::control::AttachResponse;
use wire::control::attach_response::Event;

use super::*;
use crate::metrics::Metrics;
use crate::refusals::RefusalLog;

fn control(max_streams: usize) -> Control {
    let store = Recovered::memory(Options::default()).unwrap().resume().unwrap();
    let metrics = Metrics::new();
    let refusals = Arc::new(RefusalLog::new(Arc::new(SystemClock::new())));
    let live = Live::new(Policy::built_in(), &metrics, refusals, None);
    let live = Arc::new(ArcSwap::from_pointee(live));
    let counters = (metrics.calls.clone(), metrics.streams.clone());
    Control::new(Arc::new(store), live, counters, max_streams, StopNotice::default())
}

/// The client's end of a stream, without a network.
struct Client {
    batches: mpsc::UnboundedSender<Result<AttachRequest, Status>>,
    reader: Reader,
    task: JoinHandle<()>,
    reset: CancellationToken,
}

fn attach(control: &Control) -> Client {
    let (attached, reader) = control.open(AttachedCaller::new(None, None, Via::Alone)).unwrap();
    let (batches, received) = mpsc::unbounded_channel();
    let reset = attached.reset.clone();
    let received = stream::unfold(received, |mut received| async move {
        let batch = received.recv().await?;
        Some((batch, received))
    });
    let task = tokio::spawn(async move { attached.run(pin!(received)).await });
    Client { batches, reader, task, reset }
}

impl Client {
    fn send(&self, batch: u64) {
        self.batches.send(Ok(AttachRequest { batch, worker_keys: Vec::new() })).unwrap();
    }

    async fn next(&mut self) -> Option<Result<Event, Status>> {
        let next = self.reader.next().await;
        next.map(|event| event.map(|AttachResponse { event }| event.unwrap()))
    }

    async fn answered(&mut self, batch: u64) {
        let event = self.next().await;
        let Some(Ok(Event::Answer(answer))) = event else { panic!("{event:?}") };
        assert_eq!(answer.batch, batch);
    }

    async fn unavailable(&mut self, because: &str) {
        let event = self.next().await;
        let Some(Err(status)) = event else { panic!("{event:?}") };
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains(because), "{status}");
        assert!(self.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_ended_after_ten_minutes_without_a_batch() {
    let control = control(1);
    let mut client = attach(&control);
    let start = Instant::now();
    sleep(IDLE - Duration::from_secs(1)).await;
    client.send(1);
    client.answered(1).await;
    client.unavailable("ten minutes").await;
    assert!(start.elapsed() >= 2 * IDLE - Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_notice_of_a_stop_comes_first_and_batches_are_answered_for_a_second_after_it() {
    let control = control(1);
    let mut client = attach(&control);
    client.send(1);
    client.answered(1).await;
    let start = Instant::now();
    let stop_notice = control.stop_notice.clone();
    let announced = tokio::spawn(async move { stop_notice.send().await });
    assert!(matches!(client.next().await, Some(Ok(Event::Draining(_)))));
    announced.await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO, "the announcement waits for nothing else");
    client.send(2);
    client.answered(2).await;
    client.unavailable("stopping").await;
    assert!(start.elapsed() >= AFTER_NOTICE && start.elapsed() < 2 * AFTER_NOTICE);
    assert!(
        control.open(AttachedCaller::new(None, None, Via::Alone)).is_err(),
        "nobody attaches to a server that stops"
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_holds_up_neither_the_notice_nor_the_end() {
    let control = control(1);
    let client = attach(&control);
    let start = Instant::now();
    control.stop_notice.send().await;
    assert!(start.elapsed() <= 2 * NOTICE_TIMEOUT);
    timeout(IDLE, client.reset.cancelled()).await.expect("it is reset");
    client.task.await.unwrap();
    assert!(start.elapsed() <= NOTICE_TIMEOUT + AFTER_NOTICE + STATUS_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_client_is_done_ends_well_and_leaves_its_place() {
    let control = control(1);
    let mut client = attach(&control);
    assert_eq!(control.streams.attached.get(), 1);
    let refused = control.open(AttachedCaller::new(None, None, Via::Alone)).map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "there is one place");
    client.send(7);
    drop(std::mem::replace(&mut client.batches, mpsc::unbounded_channel().0));
    client.answered(7).await;
    assert!(client.next().await.is_none());
    drop(client.reader);
    client.task.await.unwrap();
    assert!(!client.reset.is_cancelled());
    assert_eq!(control.streams.attached.get(), 0);
    assert!(control.open(AttachedCaller::new(None, None, Via::Alone)).is_ok());
}

#[tokio::test]
async fn a_stream_whose_client_is_gone_is_over_at_once() {
    let control = control(1);
    let client = attach(&control);
    drop(client.reader);
    client.task.await.unwrap();
    assert_eq!(control.streams.attached.get(), 0);
}

#[test]
fn no_key_that_was_shown_is_printed() {
    let shown = format!("{:?}", AttachedCaller::new(Some(b"hunter2"), None, Via::Alone));
    assert!(!shown.contains("hunter2"), "{shown}");
}
