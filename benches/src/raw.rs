//! The statements of a leader on PostgreSQL, sent by a client that does nothing else.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use lease::{Request, Terms};
use store::testing::batches::Batches;
use tokio_postgres::NoTls;

use crate::ids::{SESSIONS, Traces, api_key, organization};

/// How long one transaction may take.
const WITHIN: Duration = Duration::from_secs(5);

/// What a run has committed.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    /// Borrows.
    pub borrows: u64,
    /// The time in which the database was waited for.
    pub took: Duration,
}

/// Goes on where a leader of the store at `url` has ended, and commits batches of so many borrows, one
/// after another, for `span`. The borrows are those of [`crate::h2load`].
///
/// # Errors
///
/// The database cannot be reached, or another leader has taken over.
pub fn commit_batches(url: &str, batch: usize, span: Duration) -> anyhow::Result<Committed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(play(url, batch, span))
}

async fn play(url: &str, batch: usize, span: Duration) -> anyhow::Result<Committed> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    let mut batches = Batches::from_row(&client.query_one(Batches::QUERY, &[]).await?);
    let (organization, api_key, trace) = (organization(0), api_key(0), Traces::new(2).next_id());
    let terms = Terms { ttl: Duration::from_secs(3600), ..Terms::default() };
    let request = || Request {
        api_key: &api_key,
        trace: &trace,
        ..Request::session(SESSIONS, &organization)
    };
    let begin = Batches::begin(WITHIN);
    let mut committed = Committed { borrows: 0, took: Duration::ZERO };
    while committed.took < span {
        let statement = batches.grant((0..batch).map(|_| request()), &terms);
        let sent = Instant::now();
        let parameters = statement.parameters();
        let (begun, changed, ended) = tokio::join!(
            client.batch_execute(&begin),
            client.query_typed_one(statement.sql(), &parameters),
            client.batch_execute("COMMIT"),
        );
        begun?;
        let changed: i64 = changed?.get(0);
        ended?;
        anyhow::ensure!(changed == 1, "another leader has taken over");
        committed.took += sent.elapsed();
        committed.borrows += u64::try_from(batch).context("a batch")?;
    }
    Ok(committed)
}
