//! Leases in great numbers, and calls at full speed, by an indexer that has a key.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio::time::{Instant, sleep, sleep_until};
use wire::control::AttachRequest;
use wire::framing::frame as message;
use wire::worker::{KeepAliveRequest, ReturnWorkerRequest, WorkersStateRequest};

use crate::calls::{ATTACKER_KEY, LASTING, PASSING, borrow_request};
use crate::connection::{Connection, Reads};
use crate::frames::{LONGEST, flag, frame, kind};
use crate::http;
use crate::load::{ATTACH, BORROW, RETURN, STATE, fill, keyed, run};
use crate::options::Store;
use crate::stage::Stage;

/// Leases of the pool whose state is requested.
const POOL: u64 = 50_000;

/// The attacker's organization.
const ORGANIZATION: &str = "crowd";

/// Keys of a batch that fits into one frame.
const UNKNOWN_KEYS: u32 = 400;

/// How long after its TTL a lease may still count.
const LATE: Duration = Duration::from_secs(1);

/// A request for the state of the attacker's pool.
fn question() -> Bytes {
    message(&WorkersStateRequest {
        service: LASTING.into(),
        organization_id: ORGANIZATION.into(),
        api_key_id: String::new(),
    })
}

/// Fills the pool whose state is requested.
async fn pool(stage: &mut Stage) -> anyhow::Result<()> {
    fill(&stage.link(), LASTING, ORGANIZATION, POOL).await?;
    stage.leases = POOL;
    stage.leases_after = Some(POOL);
    Ok(())
}

/// Long answers that are never read: half of the clients keep a window of 0, the others do not read
/// the socket.
pub(super) async fn state_unread(stage: &mut Stage) -> anyhow::Result<()> {
    pool(stage).await?;
    stage
        .crowd(16, |link, number| async move {
            let reads = if number % 2 == 0 { Reads::NoBodies } else { Reads::Nothing };
            let mut connection = Connection::open(&link, reads).await?;
            let (block, question) = (keyed(STATE), question());
            let mut bytes = Vec::new();
            for _ in 0..connection.max_streams().min(1_024) {
                connection.call(&mut bytes, &block, &question);
                if bytes.len() > LONGEST {
                    connection.send(&bytes).await?;
                    bytes.clear();
                }
            }
            connection.send(&bytes).await?;
            connection.closed().await;
            Ok(())
        })
        .await
}

/// Long answers that are read and requested again.
pub(super) async fn state_again(stage: &mut Stage) -> anyhow::Result<()> {
    pool(stage).await?;
    stage
        .crowd(8, |link, _| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let (block, question) = (keyed(STATE), question());
            run(&mut connection, 0..u64::MAX, 8, |_| (block.clone(), question.clone())).await?;
            Ok(())
        })
        .await
}

/// Streams of session control that send batches of unknown keys and read no answer.
pub(super) async fn attach(stage: &mut Stage) -> anyhow::Result<()> {
    stage
        .crowd(100, |link, number| async move {
            let reads = if number % 2 == 0 { Reads::NoBodies } else { Reads::Nothing };
            let mut connection = Connection::open(&link, reads).await?;
            let worker_keys = (0..UNKNOWN_KEYS).map(|key| format!("{key:032x}")).collect();
            let batch = message(&AttachRequest { batch: 1, worker_keys });
            let most = u64::from(connection.max_streams().min(1_024));
            let block = keyed(ATTACH);
            let mut bytes = Vec::new();
            for opened in 0.. {
                if reads == Reads::NoBodies {
                    connection.until_room(opened, most).await?;
                } else if opened == most {
                    break;
                }
                bytes.clear();
                let stream = connection.begin(&mut bytes, &block);
                let part = connection.window(batch.len()).await?;
                frame(&mut bytes, kind::DATA, flag::NONE, stream, &batch[..part]);
                connection.send(&bytes).await?;
            }
            connection.closed().await;
            Ok(())
        })
        .await
}

/// How many leases expire together. On a disk there are fewer, because borrows take longer and no
/// lease may expire before the last borrow.
fn crowd_of(stage: &Stage) -> u64 {
    match stage.store {
        Store::Memory => stage.pick(100_000, 1_000_000),
        Store::File => stage.pick(50_000, 300_000),
    }
}

/// Borrows the leases that will expire, and returns their keys.
async fn passing(stage: &mut Stage, leases: u64) -> anyhow::Result<Vec<String>> {
    let keys = fill(&stage.link(), PASSING, ORGANIZATION, leases).await?;
    stage.leases = leases;
    Ok(keys)
}

/// Waits for the TTL of the attack's leases, and for the second by which their end may be late.
async fn pass(stage: &Stage) {
    sleep_until(Instant::now() + stage.passing + LATE).await;
}

/// Many leases that end together.
pub(super) async fn expiry(stage: &mut Stage) -> anyhow::Result<()> {
    let leases = crowd_of(stage);
    let keys = passing(stage, leases).await?;
    // Keep the leases alive in as few calls as possible, so that all end together.
    let kept = stage.caller(ATTACKER_KEY).keep_all_alive(keys).await;
    let gone = kept.context("the leases cannot be kept alive")?;
    if gone > 0 {
        stage.note(format!("{gone} of {leases} leases ended before all were borrowed"));
    }
    stage.begin()?;
    pass(stage).await;
    Ok(())
}

/// Many leases that end together because the server restarted.
pub(super) async fn expiry_after_restart(stage: &mut Stage) -> anyhow::Result<()> {
    let leases = crowd_of(stage);
    passing(stage, leases).await?;
    stage.kill_and_restart()?;
    // Let the clients detect the closed connections and reconnect.
    sleep(Duration::from_millis(500)).await;
    stage.begin()?;
    pass(stage).await;
    Ok(())
}

/// An operator ends everything that an organization holds.
pub(super) async fn disable(stage: &mut Stage) -> anyhow::Result<()> {
    let leases = 100_000;
    fill(&stage.link(), LASTING, ORGANIZATION, leases).await?;
    stage.leases = leases;
    stage.begin()?;
    let asked = Instant::now();
    let path = format!("/api/organizations/{ORGANIZATION}/disabled");
    let body = r#"{"disabled":true,"note":"attack"}"#;
    let limit = Duration::from_secs(20);
    let (status, body) = http::ask(stage.admin(), "PUT", &path, body, limit).await?;
    let took = asked.elapsed().as_millis();
    ensure!(status == 200, "{path} answered {status}: {body}");
    // The time right after the revocation belongs to the attack.
    sleep(stage.span).await;
    stage.note(format!("{leases} leases were ended in {took} ms"));
    Ok(())
}

/// Borrows, keep-alives and returns of an indexer, as fast as the server answers them.
pub(super) async fn full_speed(stage: &mut Stage) -> anyhow::Result<()> {
    // Calls in flight when the connections close may or may not have an effect, so the number of
    // leases is unknown.
    stage.leases_after = None;
    stage.leases = 100 * 1_024;
    stage
        .crowd(100, |link, connection| async move {
            let first = (connection as u128) << 64 | u128::from(rand::random::<u32>()) << 96;
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let call = |number: u64| {
                // A borrow, a keep-alive with an unknown key, and the return of the borrow by its
                // borrow id.
                let id = format!("{:032x}", first | u128::from(number / 3));
                match number % 3 {
                    0 => {
                        let block = keyed(BORROW).with("x-borrow-id", &id);
                        (block, message(&borrow_request(LASTING, ORGANIZATION, &id)))
                    }
                    1 => {
                        let key = KeepAliveRequest { worker_key: id, api_key_id: String::new() };
                        (keyed("/sf.worker.v1.WorkerPool/KeepAlive"), message(&key))
                    }
                    _ => {
                        let block = keyed(RETURN).with("x-borrow-id", &id);
                        (block, message(&ReturnWorkerRequest::default()))
                    }
                }
            };
            run(&mut connection, 0..u64::MAX, 1_024, call).await?;
            Ok(())
        })
        .await
}
