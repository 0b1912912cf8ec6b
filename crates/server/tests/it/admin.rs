//! The admin port.

use serde_json::json;
use tgm_session_server::api::Overview;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{AdminToken, Error, Server};

use crate::admin_client::{AdminClient, raw};
use crate::harness::{ManualClock, ROOMY, TestServer, config, eventually, get, session, worker};

#[tokio::test]
async fn probes_answer_while_the_server_serves() {
    let server = TestServer::memory(ROOMY).await;
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(get(server.running.admin_address(), path, "").await.0, 200, "{path}");
    }
    assert_eq!(get(server.running.admin_address(), "/nothing", "").await.0, 404);
}

#[tokio::test]
async fn metrics_count_borrows_by_service_and_outcome_and_live_leases_by_service() {
    let policy = "
        [services.t1r]
        max_per_organization = 2
        [services.default]
        max_per_organization = 9
    ";
    let server = TestServer::memory(policy).await;
    let mut client = server.client();
    let first = client.borrow(session("acme")).await;
    client.borrow(session("acme")).await;
    client.refused(session("acme")).await;
    client.borrow(session("acme").service("t8")).await;
    client.borrow(worker("acme", "a1", 3)).await;
    client.keep_alive(&first).await.unwrap();
    client.keep_alive("nonsense").await.unwrap();
    client.give_back(&first).await;
    let (status, page) = get(server.running.admin_address(), "/metrics", "").await;
    assert_eq!(status, 200);
    for line in [
        "tgm_session_borrows_total{service=\"t1r\",outcome=\"borrowed\",scope=\"\"} 2",
        "tgm_session_borrows_total{service=\"t1r\",outcome=\"denied\",scope=\"organization\"} 1",
        "tgm_session_borrows_total{service=\"default\",outcome=\"borrowed\",scope=\"\"} 2",
        "tgm_session_live_leases{service=\"t1r\"} 1",
        "tgm_session_live_leases{service=\"default\"} 2",
        "tgm_session_keep_alives_total{outcome=\"ttl_extended\"} 1",
        "tgm_session_keep_alives_total{outcome=\"failed\"} 1",
        "tgm_session_returns_total{outcome=\"returned\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(!page.contains("acme") && !page.contains("t8"), "{page}");
}

#[tokio::test]
async fn with_a_token_only_probes_are_open() {
    let clock = ManualClock::new();
    let mut config = config(ROOMY, &clock, StoreUrl::Memory);
    config.admin_token = Some(AdminToken::new("sesame").unwrap());
    assert!(!format!("{config:?}").contains("sesame"));
    let server = TestServer::start(config, clock).await;
    let admin = server.running.admin_address();
    assert_eq!(get(admin, "/readyz", "").await.0, 200);
    for (header, status) in [
        ("", 401),
        ("authorization: Bearer guess\r\n", 401),
        ("authorization: Basic sesame\r\n", 401),
        ("authorization: Bearer sesame\r\n", 200),
    ] {
        for path in ["/metrics", "/api/overview", "/api/openapi.json"] {
            assert_eq!(get(admin, path, header).await.0, status, "{path} {header}");
        }
    }
    // Unknown paths of the API need the token too. The page needs none, because it has no data.
    assert_eq!(get(admin, "/api/nothing", "").await.0, 401);
    assert_eq!(get(admin, "/", "").await.0, 200);

    let client = AdminClient::with(&server, Some("sesame")).await;
    assert_eq!(client.document["security"][0], json!({ "token": [] }));
    let refused = raw(admin, "GET", "/api/overview", &[("host", "any.example")], "").await;
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"tgm-session\""));
    client.check("GET", "/api/overview", &refused);
    refused.problem(401);
    let disable = r#"{"disabled":true}"#;
    let put = [("host", "any.example"), ("content-type", "application/json")];
    raw(admin, "PUT", "/api/organizations/acme/disabled", &put, disable).await.problem(401);
    assert_eq!(client.get::<Overview>("/api/overview").await.policy.overrides, 0);
}

#[tokio::test]
async fn a_token_in_a_file_is_read_again_when_it_changes_and_a_bad_one_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let clock = ManualClock::new();
    let mut both = config(ROOMY, &clock, StoreUrl::Memory);
    both.admin_token = Some(AdminToken::new("sesame").unwrap());
    both.admin_token_file = Some(path.clone());
    let refused = Server::bind(both).await.unwrap_err();
    assert!(refused.is_usage() && refused.to_string().contains("give one of them"), "{refused}");

    let with_file = || {
        let mut config = config(ROOMY, &clock, StoreUrl::Memory);
        config.admin_token_file = Some(path.clone());
        // Off loopback a token is required. It may be in a file.
        config.admin_listen = "0.0.0.0:0".parse().unwrap();
        config
    };
    for contents in [None, Some("sesame \n"), Some("")] {
        if let Some(contents) = contents {
            std::fs::write(&path, contents).unwrap();
        }
        let refused = Server::bind(with_file()).await.unwrap_err();
        assert!(refused.is_usage(), "{refused}");
        assert!(refused.to_string().starts_with("admin_token_file: "), "{refused}");
        assert!(!refused.to_string().contains("sesame"), "{refused}");
    }

    std::fs::write(&path, "sesame\n").unwrap();
    let server = TestServer::start(with_file(), clock.clone()).await;
    let admin = (std::net::Ipv4Addr::LOCALHOST, server.running.admin_address().port()).into();
    let status = async |token: &str| {
        get(admin, "/metrics", &format!("authorization: Bearer {token}\r\n")).await.0
    };
    assert_eq!((status("sesame").await, status("simsim").await), (200, 401));
    std::fs::write(&path, "simsim\n").unwrap();
    eventually("the new token is in force", || async { status("simsim").await == 200 }).await;
    assert_eq!(status("sesame").await, 401);
    // A file without a valid token changes nothing. The next valid token is taken.
    std::fs::write(&path, "no\nheader").unwrap();
    std::fs::write(&path, "\n").unwrap();
    let looks = tokio::time::Instant::now() + std::time::Duration::from_millis(1_500);
    while tokio::time::Instant::now() < looks {
        assert_eq!((status("simsim").await, status("").await), (200, 401));
    }
    std::fs::write(&path, "third").unwrap();
    eventually("the third token is in force", || async { status("third").await == 200 }).await;
}

#[tokio::test]
async fn without_a_token_pages_of_other_sites_and_names_of_other_hosts_are_refused() {
    let server = TestServer::memory(ROOMY).await;
    let client = AdminClient::of(&server).await;
    let here = client.address.to_string();
    let disable = r#"{"disabled":true}"#;
    let json = ("content-type", "application/json");
    for headers in [
        // A foreign host name whose DNS record points to this server.
        vec![("host", "evil.example"), json],
        vec![("host", "evil.example"), ("origin", "http://evil.example"), json],
        // Another site, and another port of this machine.
        vec![("host", &*here), ("origin", "http://evil.example"), json],
        vec![("host", &*here), ("origin", "http://localhost:3000"), json],
        vec![("host", &*here), ("sec-fetch-site", "cross-site"), json],
        vec![("host", &*here), ("sec-fetch-site", "same-site"), json],
        vec![("host", &*here), ("origin", "null"), json],
    ] {
        for (method, path, body) in [
            ("GET", "/api/overview", ""),
            ("PUT", "/api/organizations/acme/disabled", disable),
            ("POST", "/api/policy/reload", ""),
            ("GET", "/api/events", ""),
        ] {
            let answer = raw(client.address, method, path, &headers, body).await;
            client.check(method, path, &answer);
            answer.problem(403);
        }
        raw(client.address, "GET", "/metrics", &headers, "").await.problem(403);
        raw(client.address, "GET", "/page.js", &headers, "").await.problem(403);
        // Probes reveal nothing, and are answered for every host name and origin.
        assert_eq!(raw(client.address, "GET", "/readyz", &headers, "").await.status, 200);
    }
    assert_eq!(client.get::<Overview>("/api/overview").await.policy.overrides, 0);
    let own = format!("http://{here}");
    let own = [("host", &*here), ("origin", &*own), ("sec-fetch-site", "same-origin"), json];
    let done = raw(client.address, "PUT", "/api/organizations/acme/disabled", &own, disable).await;
    assert_eq!(done.status, 200, "{done:?}");
    // Without this header, browsers give the answer to no page of another site.
    assert_eq!(done.header("access-control-allow-origin"), None);
}

#[tokio::test]
async fn every_page_tells_browsers_to_trust_nothing_else() {
    let server = TestServer::memory(ROOMY).await;
    let address = server.running.admin_address();
    let host = address.to_string();
    for path in ["/", "/page.js", "/api/overview", "/api/nothing", "/metrics", "/readyz"] {
        let answer = raw(address, "GET", path, &[("host", &*host)], "").await;
        let policy = answer.header("content-security-policy").unwrap_or_default();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let kept = answer.header("cache-control");
        let expected =
            if path.starts_with("/page") || path == "/" { "no-cache" } else { "no-store" };
        assert_eq!(kept, Some(expected), "{path}");
    }
}

#[tokio::test]
async fn off_loopback_the_admin_port_needs_a_token() {
    let clock = ManualClock::new();
    let mut open = config(ROOMY, &clock, StoreUrl::Memory);
    open.admin_listen = "0.0.0.0:0".parse().unwrap();
    let refused = Server::bind(open).await.unwrap_err();
    assert!(matches!(refused, Error::AdminExposed { .. }), "{refused}");
    let mut guarded = config(ROOMY, &clock, StoreUrl::Memory);
    guarded.admin_listen = "0.0.0.0:0".parse().unwrap();
    guarded.admin_token = Some(AdminToken::new("sesame").unwrap());
    Server::bind(guarded).await.unwrap();
}
