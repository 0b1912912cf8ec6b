//! The bounds on unnamed services and on the bytes of ids. Borrows beyond them are refused.

use std::time::Duration;

use tgm_session_server::Policy;
use tgm_session_server::store::StoreUrl;
use tonic::Code;

use crate::auth::two_indexers;
use crate::harness::{ManualClock, TestServer, config, session, worker};
use crate::undecided::assert_busy;

fn unnamed(more: &str) -> String {
    format!("{}\n[services.default]\nmax_unnamed_services = 2\n{more}", two_indexers())
        .replace("services = [\"t1r\"]", "")
}

#[tokio::test]
async fn services_that_the_policy_does_not_name_are_bounded_for_each_indexer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.redb");
    let server = TestServer::file(&unnamed(""), &path, ManualClock::new()).await;
    let west = || session("acme");
    let mut client = server.client().with_key("west-old");
    let key = client.borrow(west().service("x1")).await;
    client.borrow(west().service("x2")).await;
    let status = client.ask(west().service("x3")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("max_unnamed_services"), "{status}");
    assert_busy(&client.ask(worker("acme", "trace", 3).service("x3")).await.unwrap());
    client.borrow(west().service("x2")).await;
    client.borrow(west()).await;
    client.borrow(session("acme").service("t2w")).await;
    let mut east = server.client().with_key("east-key");
    east.borrow(session("acme").service("x3")).await;

    // The count survives a restart. Services with an entry in the policy are not counted.
    let clock = server.stop().await;
    let server = TestServer::file(&unnamed(""), &path, clock).await;
    let mut client = server.client().with_key("west-old");
    client.borrow(west().service("x1")).await;
    assert_eq!(client.ask(west().service("x3")).await.unwrap_err().code(), Code::Unavailable);

    // A service that gets an entry in the policy is not counted any more.
    let named = Policy::parse(&unnamed("[services.x2]"), "test.toml").unwrap().policy;
    server.running.set_policy(named).await.unwrap();
    client.borrow(west().service("x3")).await;
    assert_eq!(client.ask(west().service("x4")).await.unwrap_err().code(), Code::Unavailable);
    client.give_back(&key).await;
    assert_eq!(client.ask(west().service("x4")).await.unwrap_err().code(), Code::Unavailable);
    server.pass(Duration::from_secs(61));
    client.borrow(west().service("x4")).await;
}

#[tokio::test]
async fn a_server_keeps_so_many_bytes_of_ids_and_no_more() {
    let clock = ManualClock::new();
    let mut config = config("[services.t1r]", &clock, StoreUrl::Memory);
    config.max_id_bytes = 1 << 20;
    let server = TestServer::start(config, clock).await;
    let mut client = server.client();
    let long = |kind: &str, number: usize| format!("{kind}{number:0>255}");
    let ask =
        |number| session(&long("o", number)).api_key(&long("k", number)).trace(&long("t", number));
    // Each lease has three ids of 256 bytes.
    let fit = (1 << 20) / 768;
    for number in 0..=fit {
        client.borrow(ask(number)).await;
    }
    let status = client.ask(ask(fit + 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("max_id_bytes"), "{status}");
    assert_busy(&client.ask(worker(&long("o", fit + 1), "trace", 3).service("t1r")).await.unwrap());
    server.pass(Duration::from_secs(61));
    client.borrow(ask(fit + 1)).await;
}
