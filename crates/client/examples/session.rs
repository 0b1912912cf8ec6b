//! One stream under one session: borrow, stream, stop when the session ends, release.
//!
//! Without an argument the example counts in this process. Pass the URL of a session server to use it:
//!
//! ```text
//! cargo run -p tgm-session --example session
//! cargo run -p tgm-session --example session 'tgm://127.0.0.1:9010?plaintext=true'
//! ```

use std::time::Duration;

use tgm_session::{Error, Pool, Released, Session, SessionRequest};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "local://".into());
    story(&url).await
}

async fn story(url: &str) -> Result<(), Error> {
    let pool = tgm_session::connect(url).await?;

    // A stream that ends by itself returns its session and waits for the answer.
    let session = borrow(&pool).await?;
    let blocks = stream(&session, 100).await.map_err(|(_, reason)| reason)?;
    println!("the stream is over after {blocks} blocks");
    match session.release().await? {
        Released::Returned => println!("the slot is free"),
        other => println!("the slot is not free yet: {other:?}"),
    }

    // A stream learns at once that its session ended. Here the pool is closed; a revocation by an operator or
    // a spent budget looks the same.
    let session = borrow(&pool).await?;
    let streaming = tokio::spawn(async move { stream(&session, u64::MAX).await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let report = pool.close(Duration::from_secs(5)).await;
    println!("{} returned, {} not", report.returned, report.not_returned);
    match streaming.await.expect("a stream does not panic") {
        Err((blocks, Error::Closed)) => println!("told to stop after {blocks} blocks"),
        other => panic!("the stream went on: {other:?}"),
    }
    Ok(())
}

async fn borrow(pool: &Pool) -> Result<Session, Error> {
    let request = SessionRequest::new("t1r", "acme")
        .api_key("key-1")
        .on_error(|reason| println!("the session ended: {reason}"));
    match pool.borrow(request).await {
        Ok(session) => {
            let ids = session.ids();
            println!("{} may stream with the trace id {}", ids.organization, ids.trace);
            Ok(session)
        }
        Err(Error::ConcurrentStreamLimitExceeded { active, max, scope, .. }) => {
            println!("refused: {active} of {max} are taken ({scope})");
            Err(Error::ConcurrentStreamLimitExceeded { active, max, scope })
        }
        Err(error) => Err(error),
    }
}

/// Streams `blocks` blocks. If the session ends before, the error has the number of blocks sent.
async fn stream(session: &Session, blocks: u64) -> Result<u64, (u64, Error)> {
    let ended = session.ended();
    tokio::pin!(ended);
    for sent in 0..blocks {
        tokio::select! {
            biased;
            reason = &mut ended => return Err((sent, reason)),
            () = tokio::task::yield_now() => {} // send a block here
        }
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_example_runs() {
        super::story("local://").await.unwrap();
    }
}
