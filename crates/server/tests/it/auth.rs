//! Which callers the server admits, and what they may use.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::worker::KeepAliveRequest;
use wire::worker::keep_alive_response::Status as Kept;
use wire::worker::return_worker_response::Status as Returned;

use crate::harness::{ManualClock, TestServer, channel, session};

pub(crate) fn digest(key: &str) -> String {
    hex::encode(Sha256::digest(key))
}

pub(crate) fn two_indexers() -> String {
    format!(
        "
        [services.t1r]
        [services.t2w]
        [[indexers]]
        name = \"west\"
        key_sha256 = [\"{}\", \"{}\"]
        [[indexers]]
        name = \"east\"
        key_sha256 = \"{}\"
        services = [\"t1r\"]
        ",
        digest("west-old"),
        digest("west-new"),
        digest("east-key"),
    )
}

#[tokio::test]
async fn every_call_needs_a_key_before_anything_else_is_looked_at() {
    let server = TestServer::memory(&two_indexers()).await;
    let anonymous = server.client();
    for mut client in [anonymous.clone(), anonymous.with_key("guess"), anonymous.with_key("")] {
        // The requests are also invalid, which a caller without a key must not learn.
        let codes = [
            client.ask(session("")).await.unwrap_err().code(),
            client.keep_alive("").await.unwrap_err().code(),
            client.give_back_after("", None).await.unwrap_err().code(),
            client.state("", "").await.unwrap_err().code(),
        ];
        assert_eq!(codes, [Code::Unauthenticated; 4]);
    }
    let mut grpc = Grpc::new(channel(server.running.grpc_address()));
    for (key, code) in [("guess", Code::Unauthenticated), ("east-key", Code::Unimplemented)] {
        grpc.ready().await.unwrap();
        let mut request = Request::new(KeepAliveRequest::default());
        request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        let codec = tonic_prost::ProstCodec::<KeepAliveRequest, KeepAliveRequest>::default();
        let path = PathAndQuery::from_static("/sf.worker.v1.WorkerPool/Nothing");
        let status = grpc.unary(request, path, codec).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
}

#[tokio::test]
async fn health_and_reflection_need_no_key() {
    let server = TestServer::memory(&two_indexers()).await;
    let channel = channel(server.running.grpc_address());
    for service in ["", "sf.worker.v1.WorkerPool", "tgm.session.v1.SessionControl"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel.clone()).check(request).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "serving");
    }
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let stream = tokio_stream::once(ask);
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(stream)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    assert!(names.contains(&"sf.worker.v1.WorkerPool".to_owned()), "{names:?}");
    assert!(names.contains(&"tgm.session.v1.SessionControl".to_owned()), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()), "{names:?}");
}

#[tokio::test]
async fn a_key_is_taken_from_x_api_key_or_from_a_bearer_token() {
    let server = TestServer::memory(&two_indexers()).await;
    let mut client = server.client();
    for (header, value, known) in [
        ("x-api-key", "east-key", true),
        ("authorization", "Bearer east-key", true),
        ("authorization", "bearer east-key", true),
        ("authorization", "Basic east-key", false),
        ("authorization", "east-key", false),
    ] {
        let mut request = Request::new(session("acme").message);
        request.metadata_mut().insert(header, value.parse().unwrap());
        let answer = client.pool.borrow_worker(request).await;
        assert_eq!(answer.is_ok(), known, "{header}: {value}");
    }
}

#[tokio::test]
async fn leases_belong_to_the_indexer_and_not_to_its_key() {
    let server = TestServer::memory(&two_indexers()).await;
    let mut old = server.client().with_key("west-old");
    let mut new = server.client().with_key("west-new");
    let mut east = server.client().with_key("east-key");
    let key = old.borrow(session("acme")).await;
    assert_eq!(east.keep_alive(&key).await.unwrap(), Kept::Failed);
    assert_eq!(east.give_back(&key).await, Returned::MissingKey);
    assert_eq!(new.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    assert_eq!(new.give_back(&key).await, Returned::Returned);
}

#[tokio::test]
async fn an_indexer_may_use_only_its_services() {
    let server = TestServer::memory(&two_indexers()).await;
    let mut east = server.client().with_key("east-key");
    let status = east.ask(session("acme").service("t2w")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("east") && status.message().contains("t2w"), "{status}");
    east.borrow(session("acme")).await;
    server.client().with_key("west-new").borrow(session("acme").service("t2w")).await;
}

#[tokio::test]
async fn a_borrow_id_belongs_to_one_indexer() {
    let server = TestServer::memory(&two_indexers()).await;
    let ask = session("acme").borrow_id("00112233445566778899aabbccddeeff");
    let west = server.client().with_key("west-new").borrow(ask.clone()).await;
    let east = server.client().with_key("east-key").borrow(ask).await;
    assert_ne!(west, east);
}

#[tokio::test]
async fn a_lease_from_before_the_first_indexer_may_be_kept_alive_and_returned_by_any() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.redb");
    let clock: Arc<ManualClock> = ManualClock::new();
    let server = TestServer::file("[services.t1r]", &path, clock).await;
    let key = server.client().borrow(session("acme")).await;
    let clock = server.stop().await;

    let server = TestServer::file(&two_indexers(), &path, clock).await;
    let (west, east) = (server.client().with_key("west-new"), server.client().with_key("east-key"));
    for mut indexer in [west.clone(), east.clone()] {
        assert_eq!(indexer.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    }
    assert_eq!(east.clone().give_back(&key).await, Returned::Returned);
}

#[tokio::test]
async fn no_status_repeats_the_key_that_was_shown() {
    let server = TestServer::memory(&two_indexers()).await;
    let status = server.client().with_key("hunter2").ask(session("acme")).await.unwrap_err();
    assert!(!format!("{status:?}").contains("hunter2"), "{status:?}");
}
