//! Frames that cost the server more than the caller.

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::connection::{Connection, Reads};
use crate::frames::{Block, CANCEL, LONGEST, flag, frame, kind, setting, settings};
use crate::load::BORROW;
use crate::stage::Stage;

/// Frames that are written at once.
const BATCH: usize = 64;

/// Connections that are broken on purpose.
const BROKEN: usize = 2_000;

/// Calls that are reset right after their headers.
pub(super) async fn rapid_reset(stage: &mut Stage) -> anyhow::Result<()> {
    stage
        .crowd(20, |link, _| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let block = Block::call(BORROW);
            let mut bytes = Vec::new();
            loop {
                bytes.clear();
                for _ in 0..BATCH {
                    let stream = connection.begin(&mut bytes, &block);
                    let code = CANCEL.to_be_bytes();
                    frame(&mut bytes, kind::RST_STREAM, flag::NONE, stream, &code);
                }
                connection.send(&bytes).await?;
            }
        })
        .await
}

/// Headers that never end, in long frames on one half of the connections and in empty ones on the
/// other.
pub(super) async fn continuation(stage: &mut Stage) -> anyhow::Result<()> {
    stage
        .crowd(50, |link, number| async move {
            let mut connection = Connection::open(&link, Reads::Everything).await?;
            let mut bytes = Vec::new();
            let stream = connection.stream();
            let block = Block::call(BORROW);
            frame(&mut bytes, kind::HEADERS, flag::NONE, stream, block.bytes());
            connection.send(&bytes).await?;
            bytes.clear();
            if number % 2 == 0 {
                // A whole header of 16 KiB less its length.
                let long = Block::empty().with("a", &"b".repeat(LONGEST - 6));
                frame(&mut bytes, kind::CONTINUATION, flag::NONE, stream, long.bytes());
            } else {
                for _ in 0..BATCH {
                    frame(&mut bytes, kind::CONTINUATION, flag::NONE, stream, &[]);
                }
            }
            loop {
                connection.send(&bytes).await?;
            }
        })
        .await
}

/// Pings, each of which needs an answer.
pub(super) async fn pings(stage: &mut Stage) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for number in 0..BATCH as u64 {
        frame(&mut bytes, kind::PING, flag::NONE, 0, &number.to_be_bytes());
    }
    flood(stage, bytes).await
}

/// Settings, each of which needs an acknowledgement.
pub(super) async fn settings_of(stage: &mut Stage) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for number in 0..BATCH as u32 {
        settings(&mut bytes, &[(setting::INITIAL_WINDOW_SIZE, 60_000 + number)]);
    }
    flood(stage, bytes).await
}

/// Sends the same bytes repeatedly, on connections that read no answers.
async fn flood(stage: &mut Stage, bytes: Vec<u8>) -> anyhow::Result<()> {
    stage
        .crowd(20, move |link, _| {
            let bytes = bytes.clone();
            async move {
                let mut connection = Connection::open(&link, Reads::Nothing).await?;
                loop {
                    connection.send(&bytes).await?;
                }
            }
        })
        .await
}

/// Connections that violate the protocol. Each causes a line in the log.
pub(super) async fn broken(stage: &mut Stage) -> anyhow::Result<()> {
    stage.begin()?;
    let address = stage.link().address;
    let mut crowd = JoinSet::new();
    for _ in 0..BROKEN {
        crowd.spawn(async move {
            let mut stream = TcpStream::connect(address).await.context("it cannot connect")?;
            stream.write_all(crate::frames::PREFACE).await?;
            // A frame of SETTINGS on a stream, which is an error of the connection.
            let mut bytes = Vec::new();
            frame(&mut bytes, kind::SETTINGS, flag::NONE, 1, &[]);
            stream.write_all(&bytes).await?;
            let mut rest = Vec::new();
            // The server may close or reset the connection.
            let _ = stream.read_to_end(&mut rest).await;
            anyhow::Ok(())
        });
        if crowd.len() >= BATCH
            && let Some(ended) = crowd.join_next().await
        {
            ended??;
        }
    }
    tokio::time::sleep(stage.span).await;
    crowd.shutdown().await;
    Ok(())
}
