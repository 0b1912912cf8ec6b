//! What the real server pushes over the stream, in real time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tgm_session::{Dsn, Error, Pool, Session, SessionRequest, TgmPool};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Policy, Running, Server};

const POLICY: &str = r#"
    [services.t1r]
    minimal_life = "0s"
    [services.t2w]
    minimal_life = "0s"
"#;

const SOON: Duration = Duration::from_secs(40);

fn policy(more: &str) -> Policy {
    Policy::parse(&format!("{POLICY}\n{more}"), "test.toml").unwrap().policy
}

async fn serve(port: u16) -> Running {
    let mut config = Config::new(policy(""), StoreUrl::Memory);
    config.listen.set_port(port);
    config.admin_listen.set_port(0);
    config.threads = 1;
    Server::bind(config).await.unwrap().start().await.unwrap()
}

/// A pool with an open stream to the server, and a session of each organization.
async fn attached(server: &Running, organizations: &[&str]) -> (Pool, Vec<Session>) {
    let address = server.grpc_address();
    let dsn = Dsn::parse(&format!("tgm://{address}?plaintext=true")).unwrap();
    let pool = Pool::new(Arc::new(TgmPool::from_dsn(&dsn).unwrap()));
    let mut sessions = Vec::new();
    for organization in organizations {
        let request = SessionRequest::new("t1r", *organization).trace(*organization);
        sessions
            .push(pool.borrow(request.api_key(format!("key-of-{organization}"))).await.unwrap());
    }
    until(|| pool.stats().attached && sessions.iter().all(|session| session.keep_alives() > 0))
        .await;
    (pool, sessions)
}

async fn until(condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, reached).await.unwrap();
}

#[tokio::test]
async fn a_disabled_organization_or_key_ends_its_sessions_within_a_second_and_no_others() {
    let more = "[organizations.acme]\ndisabled = true\n[api_keys.key-of-umbra]\ndisabled = true\n";
    let mut fastest = Duration::MAX;
    // A busy machine delays one attempt now and then.
    for _ in 0..3 {
        let server = serve(0).await;
        let (_pool, sessions) = attached(&server, &["acme", "umbra", "zeta"]).await;
        let worker = sessions[0].borrow_worker("t2w", 3).await.unwrap();
        let cause = Instant::now();
        server.set_policy(policy(more)).await.unwrap();
        for ended in [sessions[0].ended().await, sessions[1].ended().await, worker.ended().await] {
            assert!(matches!(ended, Error::PermissionDenied { .. }), "{ended}");
        }
        fastest = fastest.min(cause.elapsed());
        assert_eq!(sessions[2].end_reason(), None);
        server.stop().await.unwrap();
        if fastest < Duration::from_secs(1) {
            return;
        }
    }
    panic!("the fastest attempt took {fastest:?}");
}

#[tokio::test]
async fn a_stopping_server_ends_no_session_and_the_next_one_gets_all_of_them_over_a_stream() {
    let server = serve(0).await;
    let port = server.grpc_address().port();
    let (pool, sessions) = attached(&server, &["acme", "umbra"]).await;
    let before: Vec<_> = sessions.iter().map(|session| session.key()).collect();
    server.stop().await.unwrap();
    assert!(sessions.iter().all(|session| session.end_reason().is_none()));
    let server = serve(port).await;
    // The new server knows no lease, so each session is borrowed again and the stream is opened
    // again.
    let again = || sessions.iter().zip(&before).all(|(session, before)| session.key() != *before);
    until(|| again() && pool.stats().attached).await;
    assert_eq!(pool.stats().lost, 0);
    let report = pool.close(SOON).await;
    assert_eq!((report.returned, report.not_returned), (2, 0));
    server.stop().await.unwrap();
}
