//! Attacks on the memory of the server by callers without a key, or with a wrong one.

use crate::connection::{Connection, Reads};
use crate::frames::{Block, LONGEST, flag, frame, kind};
use crate::load::{BORROW, REPORT};
use crate::stage::Stage;

/// Connections of each of these attacks.
const CONNECTIONS: usize = 100;

/// The most calls at once on one connection, if the server permits that many.
const STREAMS: u64 = 1_024;

/// References to one header in each call. Each counts as 33 bytes of the header list, whose limit
/// is 32 KiB.
const REFERENCES: usize = 900;

/// The number of streams in a batch that is written at once.
const BATCH: u64 = 32;

/// The first bytes of a message of 60,000 bytes.
const LONG_MESSAGE: [u8; 5] = [0, 0, 0, 0xea, 0x60];

pub(super) fn with_key(block: Block, key: Option<&str>) -> Block {
    match key {
        Some(key) => block.with("x-api-key", key),
        None => block,
    }
}

/// Keeps so many streams open as the server permits, and opens a new one for each that ends; `open`
/// appends the frames of one stream.
async fn keep_open(
    connection: &mut Connection,
    mut open: impl FnMut(&mut Connection, &mut Vec<u8>, u64),
) -> anyhow::Result<()> {
    let most = STREAMS.min(connection.max_streams().into());
    let (mut opened, mut bytes) = (0, Vec::new());
    loop {
        let ended = connection.ended();
        let batch = (ended + most).saturating_sub(opened).min(BATCH);
        if batch == 0 {
            connection.until_ended(ended, None).await?;
            continue;
        }
        bytes.clear();
        for _ in 0..batch {
            open(connection, &mut bytes, opened);
            opened += 1;
        }
        connection.send(&bytes).await?;
    }
}

/// Header references: each takes one byte on the wire and one entry in the server's memory.
pub(super) async fn references(stage: &mut Stage, key: Option<&'static str>) -> anyhow::Result<()> {
    stage
        .crowd(CONNECTIONS, move |link, _| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let plain = with_key(Block::call(BORROW), key);
            let first = plain.clone().remembered("a", "").repeated(REFERENCES - 1);
            let next = plain.repeated(REFERENCES);
            keep_open(&mut connection, |connection, bytes, number| {
                connection.begin(bytes, if number == 0 { &first } else { &next });
            })
            .await
        })
        .await
}

/// More streams than the server says that it permits.
pub(super) async fn streams(stage: &mut Stage) -> anyhow::Result<()> {
    stage
        .crowd(CONNECTIONS, |link, _| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let block = Block::call(BORROW);
            for _ in 0..4 * STREAMS / BATCH {
                let mut bytes = Vec::new();
                for _ in 0..BATCH {
                    connection.begin(&mut bytes, &block);
                }
                connection.send(&bytes).await?;
            }
            connection.closed().await;
            Ok(())
        })
        .await
}

/// Bodies that fill every window and do not end.
pub(super) async fn bodies(stage: &mut Stage, key: Option<&'static str>) -> anyhow::Result<()> {
    stage
        .crowd(CONNECTIONS, move |link, number| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let path = if number % 2 == 0 { BORROW } else { REPORT };
            let block = with_key(Block::call(path), key);
            let filler = [&LONG_MESSAGE[..], &[0; LONGEST - LONG_MESSAGE.len()]].concat();
            let most = STREAMS.min(connection.max_streams().into());
            for opened in 0.. {
                // A stream that was answered makes room for another.
                connection.until_room(opened, most).await?;
                let mut bytes = Vec::new();
                let stream = connection.begin(&mut bytes, &block);
                let mut left = connection.stream_window().min(60_000);
                while left > 0 {
                    let part = connection.window(left.min(LONGEST)).await?;
                    // The first part begins a message. The later parts continue that message,
                    // whatever their bytes are.
                    frame(&mut bytes, kind::DATA, flag::NONE, stream, &filler[..part]);
                    connection.send(&bytes).await?;
                    bytes.clear();
                    left -= part;
                }
            }
            Ok(())
        })
        .await
}

/// Bodies of one byte, with so many bytes between two of them that each is in a different read
/// buffer. Each body may keep its whole buffer in memory.
pub(super) async fn pinned(stage: &mut Stage) -> anyhow::Result<()> {
    stage
        .crowd(CONNECTIONS, |link, _| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let block = Block::call(BORROW);
            let between = vec![0; LONGEST];
            keep_open(&mut connection, |connection, bytes, _| {
                let stream = connection.begin(bytes, &block);
                // The connection's window is wider than one byte for each stream.
                frame(bytes, kind::DATA, flag::NONE, stream, &[0]);
                frame(bytes, kind::UNKNOWN, flag::NONE, 0, &between);
            })
            .await
        })
        .await
}

/// Streams that need no key: health watches.
pub(super) async fn health(stage: &mut Stage) -> anyhow::Result<()> {
    stage
        .crowd(CONNECTIONS, |link, _| async move {
            let mut connection = Connection::open(&link, Reads::NoBodies).await?;
            let block = Block::call("/grpc.health.v1.Health/Watch");
            keep_open(&mut connection, |connection, bytes, _| {
                connection.call(bytes, &block, &[0; 5]);
            })
            .await
        })
        .await
}

/// Streams that need no key: reflection requests, whose answers are long.
pub(super) async fn reflection(stage: &mut Stage) -> anyhow::Result<()> {
    stage
        .crowd(CONNECTIONS, |link, number| async move {
            let reads = if number % 2 == 0 { Reads::NoBodies } else { Reads::Nothing };
            let mut connection = Connection::open(&link, reads).await?;
            let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
            let block = Block::call(path);
            let question = question();
            // As many requests as fit into the connection's first window, spread over its streams.
            let asked = question.repeat(1 + 50_000 / STREAMS as usize / question.len());
            let most = STREAMS.min(connection.max_streams().into());
            let mut bytes = Vec::new();
            for _ in 0..most {
                let stream = connection.begin(&mut bytes, &block);
                let part = connection.window(asked.len()).await?;
                frame(&mut bytes, kind::DATA, flag::NONE, stream, &asked[..part]);
                if bytes.len() > LONGEST {
                    connection.send(&bytes).await?;
                    bytes.clear();
                }
            }
            connection.send(&bytes).await?;
            // Further requests use the same streams in turn, as the windows are granted.
            for stream in (1..2 * most as u32).step_by(2).cycle() {
                let part = connection.window(question.len()).await?;
                bytes.clear();
                frame(&mut bytes, kind::DATA, flag::NONE, stream, &question[..part]);
                connection.send(&bytes).await?;
            }
            Ok(())
        })
        .await
}

/// A reflection request for the file that defines the worker pool.
fn question() -> Vec<u8> {
    let symbol = b"sf.worker.v1.WorkerPool";
    // Field 4, of type string.
    let mut question = vec![0, 0, 0, 0, 2 + symbol.len() as u8, 0x22, symbol.len() as u8];
    question.extend_from_slice(symbol);
    question
}
