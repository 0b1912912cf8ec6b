//! Acknowledged calls survive `kill -9`. The tests kill the server many times under load, on one
//! store.
//!
//! Clients borrow and return over gRPC and record every answer in a [`Book`]. The server is killed
//! at a random moment. The next server on the same store has to agree with the book; a call that
//! was not answered may have had an effect or not.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod book;
mod clients;
#[path = "../it/harness.rs"]
#[allow(dead_code, reason = "the other tests use the rest of it")]
mod harness;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use book::Book;
use clients::Clients;
use harness::{Serve, file, folder};
use usage::Reporter;

/// How often the server is killed.
const ROUNDS: u32 = 24;
/// How many clients call the server at once.
const CLIENTS: usize = 16;

/// The limits are low, so that they are reached all the time.
const POLICY: &str = r#"
[services.t1r]
max_per_organization = 6
ttl = "10m"
[services.t2w]
max_per_organization = 9
ttl = "10m"
"#;

#[test]
fn acknowledged_borrows_and_returns_survive_repeated_kills_under_load() {
    let folder = folder();
    let policy = file(&folder, "policy.toml", POLICY);
    let runtime = Runtime::new().unwrap();
    let book = Arc::new(Book::default());

    // A slow machine needs more rounds until enough calls were answered.
    for round in
        (0..10 * ROUNDS).take_while(|round| *round < ROUNDS || book.acknowledged() <= 1_000)
    {
        let mut server = Serve::with_policy(&folder, &policy);
        let clients = Clients::of(&server.grpc, book.clone(), &runtime);
        runtime.block_on(clients.agree_with_the_book());

        let mut load = JoinSet::new();
        for client in 0..CLIENTS {
            load.spawn_on(clients.clone().work(client), runtime.handle());
        }
        // The server is killed at a random moment, so there is no event to wait for.
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..350)));
        server.kill();
        runtime.block_on(async {
            while let Some(ended) = load.join_next().await {
                ended.unwrap_or_else(|panic| panic!("round {round}: {panic}"));
            }
        });
    }
    let acknowledged = book.acknowledged();
    eprintln!("{acknowledged} borrows and returns acknowledged");
    assert!(acknowledged > 1_000, "only {acknowledged} calls were answered: that is no load");

    let mut server = Serve::with_policy(&folder, &policy);
    let clients = Clients::of(&server.grpc, book.clone(), &runtime);
    runtime.block_on(async {
        clients.agree_with_the_book().await;
        clients.return_everything().await;
        clients.agree_with_the_book().await;
    });
    assert_eq!(server.stop(), Some(0));

    // After a clean stop, the leases are still gone.
    let mut server = Serve::with_policy(&folder, &policy);
    assert_eq!(server.ready["recovered_leases"], 0);
    let clients = Clients::of(&server.grpc, book, &runtime);
    runtime.block_on(clients.find_none_of_the_keys());
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn an_answered_report_counts_once_despite_retries_and_kills_of_the_server() {
    let mut reporters: Vec<_> = (0..8).map(Reporter::new).collect();
    let plans: String = reporters.iter().map(Reporter::plan).collect();
    let folder = folder();
    let policy = file(&folder, "policy.toml", &format!("{}{plans}", usage::POLICY));
    let runtime = Runtime::new().unwrap();

    let answered = |reporters: &[Reporter]| reporters.iter().map(Reporter::answered).sum::<u64>();
    // A slow machine needs more rounds until enough reports were answered.
    let mut rounds = 0;
    while rounds < 10 || (answered(&reporters) <= 200 && rounds < 100) {
        rounds += 1;
        let mut server = Serve::with_policy(&folder, &policy);
        let mut load = JoinSet::new();
        for reporter in reporters {
            load.spawn_on(reporter.work(server.grpc.clone()), runtime.handle());
        }
        // The server is killed at a random moment, so there is no event to wait for.
        std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..350)));
        server.kill();
        reporters = runtime.block_on(load.join_all());
    }
    let answered = answered(&reporters);
    eprintln!("{answered} reports answered");
    assert!(answered > 200, "only {answered} reports were answered: that is no load");

    let mut server = Serve::with_policy(&folder, &policy);
    runtime.block_on(async {
        let mut client = usage::client(&server.grpc);
        for reporter in &reporters {
            let used = reporter.used(&mut client).await.unwrap();
            assert!(used - reporter.answered() <= 1, "{used} counted of {reporter:?}");
        }
    });
    assert_eq!(server.stop(), Some(0));
}
