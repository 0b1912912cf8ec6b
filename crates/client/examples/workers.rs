//! Parallel jobs under one session. Each job has a worker, so the limit on workers limits the jobs.
//!
//! ```text
//! cargo run -p tgm-session --example workers
//! cargo run -p tgm-session --example workers 'tgm://127.0.0.1:9010?plaintext=true'
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tgm_session::{Error, Session, SessionRequest};
use tokio::task::JoinSet;

/// The most workers of this session at once.
const MAX_WORKERS: u32 = 3;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "local://".into());
    let most_at_once = story(&url, 12).await?;
    println!("12 jobs are done, at most {most_at_once} at once");
    Ok(())
}

/// Runs `jobs` jobs, and returns how many ran at once at most.
async fn story(url: &str, jobs: usize) -> Result<usize, Error> {
    let pool = tgm_session::connect(url).await?;
    let session = Arc::new(pool.borrow(SessionRequest::new("t1r", "acme")).await?);
    let (active, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));

    let mut all = JoinSet::new();
    for job in 0..jobs {
        let (session, active, most) = (session.clone(), active.clone(), most.clone());
        all.spawn(async move {
            let worker = borrow_in_turn(&session).await?;
            most.fetch_max(active.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // The job itself. It stops when its worker or its session ends.
            tokio::select! {
                reason = worker.ended() => return Err(reason),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            active.fetch_sub(1, Ordering::SeqCst);
            println!("job {job} is done");
            worker.release_after(Duration::ZERO).await?;
            Ok(())
        });
    }
    while let Some(job) = all.join_next().await {
        job.expect("a job does not panic")?;
    }

    let report = pool.close(Duration::from_secs(5)).await;
    assert_eq!(report.not_returned, 0, "everything was returned");
    Ok(most.load(Ordering::SeqCst))
}

/// Borrows a worker, and waits while all workers of the session are in use.
///
/// With `tgm://` the parameter `borrow-wait` does the same.
async fn borrow_in_turn(session: &Session) -> Result<tgm_session::Worker, Error> {
    loop {
        match session.borrow_worker("t2w", MAX_WORKERS).await {
            Err(Error::WorkersLimitExceeded { .. }) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            borrowed => return borrowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::MAX_WORKERS;

    #[tokio::test]
    async fn every_job_is_done_and_the_limit_on_workers_holds() {
        let most_at_once = super::story("local://", 12).await.unwrap();
        assert_eq!(most_at_once, MAX_WORKERS as usize);
    }
}
