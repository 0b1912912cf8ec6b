//! Compressed messages, from real clients and as raw bytes.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use prost::Message as _;
use tgm_session_server::Config;
use tgm_session_server::store::StoreUrl;
use tonic::Code;
use tonic::codec::CompressionEncoding::Gzip;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::control::session_control_client::SessionControlClient;
use wire::metering::{Event, Metric};
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;
use wire::worker::keep_alive_response::Status as Kept;
use wire::worker::return_worker_response::Status as Returned;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{KeepAliveRequest, ReturnWorkerRequest, WorkersStateRequest};

use crate::attached::{Attached, metric};
use crate::harness::{
    ManualClock, ROOMY, TestServer, channel, config, eventually, session, worker,
};
use crate::limits::{BORROW, Body, connect, open_body};

const KEEP_ALIVE: &str = "/sf.worker.v1.WorkerPool/KeepAlive";
const ATTACH: &str = "/tgm.session.v1.SessionControl/Attach";
const REPORT: &str = "/sf.gateway.payment.v1.UsageService/Report";
const CHECK: &str = "/grpc.health.v1.Health/Check";

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A message with the gRPC prefix: a flag and its length.
pub(crate) fn flagged(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn whole(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).boxed_unsync()
}

/// Calls a method on a new connection. Returns the status code, its message and the headers.
async fn call(
    server: &TestServer,
    path: &str,
    encoding: Option<&str>,
    body: Body,
) -> (Code, String, HeaderMap) {
    let mut connection = connect(server.running.grpc_address()).await;
    let mut request = crate::limits::call(body);
    *request.uri_mut() = format!("http://test{path}").parse().unwrap();
    if let Some(encoding) = encoding {
        request.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
    }
    let response = connection.send_request(request).await.unwrap();
    let headers = response.headers().clone();
    let trailers = response.into_body().collect().await.unwrap().trailers().cloned();
    let status = tonic::Status::from_header_map(&trailers.unwrap_or(headers.clone())).unwrap();
    (status.code(), status.message().to_owned(), headers)
}

async fn server(policy: &str, set: impl FnOnce(&mut Config)) -> TestServer {
    let clock = ManualClock::new();
    let mut config = config(policy, &clock, StoreUrl::Memory);
    set(&mut config);
    TestServer::start(config, clock).await
}

fn usage(organization: &str, value: f64) -> Event {
    Event {
        organization_id: organization.to_owned(),
        metrics: vec![Metric { key: "egress_bytes".to_owned(), value }],
        ..Event::default()
    }
}

#[tokio::test]
async fn a_client_that_compresses_makes_every_unary_call() {
    let server = TestServer::memory(ROOMY).await;
    let channel = channel(server.running.grpc_address());
    let mut pool =
        WorkerPoolClient::new(channel.clone()).send_compressed(Gzip).accept_compressed(Gzip);
    let granted = pool.borrow_worker(session("acme").message).await.unwrap();
    assert!(granted.metadata().get("grpc-encoding").is_none(), "answers are not compressed");
    let worker_key = granted.into_inner().worker_key;
    pool.borrow_worker(worker("acme", "trace", 3).message).await.unwrap();
    let message = KeepAliveRequest { worker_key: worker_key.clone(), ..Default::default() };
    let kept = pool.keep_alive(message).await.unwrap().into_inner();
    assert_eq!(kept.status(), Kept::TtlExtended);
    let message = WorkersStateRequest {
        service: "t1r".into(),
        organization_id: "acme".into(),
        ..Default::default()
    };
    let state = pool.workers_state(message).await.unwrap().into_inner().worker_state.unwrap();
    assert_eq!(state.borrowed_workers, 1);
    let message = ReturnWorkerRequest { worker_key, minimal_worker_life_duration: None };
    let returned = pool.return_worker(message).await.unwrap().into_inner();
    assert_eq!(returned.status(), Returned::Returned);

    let mut reports = UsageServiceClient::new(channel.clone()).send_compressed(Gzip);
    reports.report(ReportRequest { events: vec![usage("acme", 1.0)] }).await.unwrap();
    assert_eq!(metric(&server.running, "tgm_session_usage_events_total").await, 1);
    let mut health = HealthClient::new(channel).send_compressed(Gzip);
    let healthy = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(healthy.status, 1);
}

#[tokio::test]
async fn a_client_that_compresses_keeps_leases_alive_on_a_stream() {
    let server = TestServer::memory(ROOMY).await;
    let key = server.client().borrow(session("acme")).await;
    let client = SessionControlClient::new(channel(server.running.grpc_address()));
    let mut stream = Attached::of(client.send_compressed(Gzip), None).await.unwrap();
    for _ in 0..3 {
        stream.name(&[&key]).await;
    }
    // A thousand keys are one batch, and compress to less than one frame.
    let keys = vec![&*key; 1_000];
    stream.name(&keys).await;
    server.running.revoke(key.parse().unwrap(), lease::Reason::Operator).await.unwrap();
    assert_eq!(stream.revoked().await.0, key);
}

#[tokio::test]
async fn a_client_that_compresses_may_ask_what_services_there_are() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

    let server = TestServer::memory(ROOMY).await;
    let client = ServerReflectionClient::new(channel(server.running.grpc_address()));
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answers =
        client.send_compressed(Gzip).server_reflection_info(tokio_stream::once(ask)).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap().unwrap();
    assert!(answer.message_response.is_some(), "{answer:?}");
}

#[tokio::test]
async fn compressed_and_plain_batches_may_come_on_one_stream_in_any_pieces() {
    let server = TestServer::memory(ROOMY).await;
    let batch =
        |batch| wire::control::AttachRequest { batch, ..Default::default() }.encode_to_vec();
    let (sender, body) = open_body();
    let sent = [
        flagged(1, &gzip(&batch(1))),
        flagged(0, &batch(2)),
        flagged(1, &gzip(&batch(3))),
        // An invalid message ends the stream with a status.
        flagged(1, b"no gzip"),
    ];
    for piece in sent.concat().chunks(7) {
        sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    drop(sender);
    let mut connection = connect(server.running.grpc_address()).await;
    let mut request = crate::limits::call(body);
    *request.uri_mut() = format!("http://test{ATTACH}").parse().unwrap();
    request.headers_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let response = connection.send_request(request).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "3", "{trailers:?}");
    let answers = collected.to_bytes();
    let answers: Vec<_> = answers.chunks(answers.len() / 3).collect();
    for (number, answer) in (1..).zip(&answers) {
        let answer = wire::control::AttachResponse::decode(&answer[5..]).unwrap();
        let Some(wire::control::attach_response::Event::Answer(answer)) = answer.event else {
            panic!("{answer:?}")
        };
        assert_eq!(answer.batch, number);
    }
    assert_eq!(answers.len(), 3);
}

#[tokio::test]
async fn another_encoding_is_unimplemented_and_the_answer_names_the_supported_ones() {
    let server = TestServer::memory(ROOMY).await;
    for path in [BORROW, KEEP_ALIVE, REPORT, CHECK, ATTACH] {
        for encoding in ["deflate", "snappy", "GZIP", "gzip,gzip", ""] {
            for flag in [0, 1] {
                let (code, words, headers) =
                    call(&server, path, Some(encoding), whole(flagged(flag, b"packed"))).await;
                assert_eq!(code, Code::Unimplemented, "{path} {encoding} {flag}: {words}");
                assert_eq!(headers["grpc-accept-encoding"], "identity,gzip");
                assert!(words.contains("identity,gzip"), "{words}");
            }
        }
        for encoding in [None, Some("identity"), Some("gzip")] {
            if path != ATTACH {
                let (code, words, _) = call(&server, path, encoding, whole(flagged(0, b""))).await;
                assert_ne!(code, Code::Unimplemented, "{path} {encoding:?}: {words}");
            }
        }
    }
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn a_flag_that_does_not_fit_the_encoding_header_is_internal_as_grpc_requires() {
    let server = TestServer::memory(ROOMY).await;
    let message = session("acme").message.encode_to_vec();
    for path in [BORROW, KEEP_ALIVE, REPORT, CHECK, ATTACH] {
        for (encoding, flag) in [
            (None, 1),
            (Some("identity"), 1),
            (None, 2),
            (Some("identity"), 255),
            (Some("gzip"), 2),
            (Some("gzip"), 255),
        ] {
            let body = whole(flagged(flag, &gzip(&message)));
            let (code, words, _) = call(&server, path, encoding, body).await;
            assert_eq!(code, Code::Internal, "{path} {encoding:?} {flag}: {words}");
            assert!(words.contains("protocol error"), "{words}");
        }
    }
    assert_eq!(server.live().await, 0);
}

#[tokio::test]
async fn what_is_not_one_whole_member_of_gzip_is_an_invalid_argument() {
    let server = TestServer::memory(ROOMY).await;
    let message = session("acme").message.encode_to_vec();
    let good = gzip(&message);
    let mut corrupt = good.clone();
    let last = corrupt.len() - 8;
    corrupt[last] ^= 1;
    let half = good.len() / 2;
    for (what, wrong) in [
        ("nothing", vec![]),
        ("no gzip", message.clone()),
        ("half of the message", good[..half].to_vec()),
        ("a cut off end", good[..good.len() - 1].to_vec()),
        ("a checksum that is wrong", corrupt),
        ("a byte too many", [&good[..], b"0"].concat()),
        ("two members", [&good[..], &good].concat()),
        ("a member that is empty and another one", [&gzip(b"")[..], &good].concat()),
    ] {
        for path in [BORROW, REPORT, CHECK, ATTACH] {
            let (code, words, _) =
                call(&server, path, Some("gzip"), whole(flagged(1, &wrong))).await;
            assert_eq!(code, Code::InvalidArgument, "{what} at {path}: {words}");
            assert!(words.contains("cannot be decompressed"), "{words}");
        }
    }
    let two = [flagged(1, &good), flagged(1, &good)].concat();
    let cut = flagged(1, &good)[..20].to_vec();
    for wrong in [two, cut] {
        let (code, words, _) = call(&server, BORROW, Some("gzip"), whole(wrong)).await;
        assert_eq!(code, Code::InvalidArgument, "{words}");
    }
    assert_eq!(server.live().await, 0);
    assert_eq!(call(&server, BORROW, Some("gzip"), whole(flagged(1, &good))).await.0, Code::Ok);
}

#[tokio::test]
async fn a_stream_of_gzip_ends_when_a_message_is_cut_off_or_begins_as_one_that_is_too_large() {
    let server = TestServer::memory(ROOMY).await;
    let good = flagged(1, &gzip(&wire::control::AttachRequest::default().encode_to_vec()));
    let cut = [&good[..], &good[..good.len() - 1]].concat();
    let (code, words, _) = call(&server, ATTACH, Some("gzip"), whole(cut)).await;
    assert_eq!(code, Code::InvalidArgument, "{words}");
    assert!(words.contains("is cut off"), "{words}");
    for flag in [0, 1] {
        // The message itself never arrives: the server refuses it because of its prefix.
        let (sender, body) = open_body();
        sender.send([&[flag][..], &(64_u32 << 10).to_be_bytes()].concat().into()).await.unwrap();
        let answer = call(&server, ATTACH, Some("gzip"), body);
        let answer = tokio::time::timeout(Duration::from_secs(60), answer).await;
        let (code, words, _) = answer.expect("an answer");
        assert_eq!(code, Code::InvalidArgument, "{flag}: {words}");
        assert!(words.contains("larger than 65536 bytes"), "{flag}: {words}");
    }
}

#[tokio::test]
async fn a_stream_of_gzip_takes_up_memory_for_a_message_and_for_what_comes_out_of_it() {
    let server = TestServer::memory(ROOMY).await;
    let mut connection = connect(server.running.grpc_address()).await;
    let mut open = Vec::new();
    let mut used = Vec::new();
    for encoding in ["identity", "gzip"] {
        let (sender, body) = open_body();
        let mut request = crate::limits::call(body);
        *request.uri_mut() = format!("http://test{ATTACH}").parse().unwrap();
        request.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
        open.push((sender, connection.send_request(request).await.unwrap()));
        used.push(metric(&server.running, "tgm_session_connection_memory_bytes").await);
    }
    assert!(used[1] >= used[0] + (128 << 10), "{used:?}");
}

/// Less than 64 KiB that decompress to more bytes than any call may have.
fn bomb() -> Vec<u8> {
    gzip(&vec![0; 33 << 20])
}

#[tokio::test]
async fn a_bomb_is_stopped_at_the_bound_of_a_message() {
    let server = TestServer::memory(ROOMY).await;
    let bomb = flagged(1, &bomb());
    assert!(bomb.len() < 64 << 10, "{}", bomb.len());
    let before = metric(&server.running, "tgm_session_connection_memory_bytes").await;
    for path in [BORROW, KEEP_ALIVE, CHECK, ATTACH, REPORT] {
        let most = if path == REPORT { 32 << 20 } else { 64 << 10 };
        let (code, words, _) = call(&server, path, Some("gzip"), whole(bomb.clone())).await;
        assert_eq!(code, Code::InvalidArgument, "{path}: {words}");
        assert!(words.contains(&format!("larger than {most} bytes")), "{path}: {words}");
    }
    eventually("all of it is given back", || async {
        metric(&server.running, "tgm_session_connection_memory_bytes").await <= before + (3 << 16)
    })
    .await;
}

#[tokio::test]
async fn a_message_may_be_as_large_as_without_compression_and_no_larger() {
    let server = TestServer::memory(ROOMY).await;
    // The message has an unknown field and no key.
    let of = |length: usize| {
        let padding = vec![b'p'; length - 4];
        let mut message = vec![0x7a];
        prost::encoding::encode_varint(padding.len() as u64, &mut message);
        message.extend(padding);
        assert_eq!(message.len(), length);
        message
    };
    let most = (64 << 10) - 5;
    for (length, expected) in [(most, Code::Ok), (most + 1, Code::InvalidArgument)] {
        for (flag, message) in [(0, of(length)), (1, gzip(&of(length)))] {
            let body = whole(flagged(flag, &message));
            let (code, words, _) = call(&server, KEEP_ALIVE, Some("gzip"), body).await;
            assert_eq!(code, expected, "{length} flagged {flag}: {words}");
        }
    }
}

#[tokio::test]
async fn what_comes_out_of_a_message_takes_up_memory_of_its_caller() {
    let server = server(ROOMY, |config| config.port.max_connection_memory = 1 << 20).await;
    let large = flagged(1, &gzip(&vec![0; 2 << 20]));
    let (code, words, _) = call(&server, REPORT, Some("gzip"), whole(large)).await;
    assert_eq!(code, Code::Unavailable, "{words}");
    assert!(words.contains("too much memory"), "{words}");
    let small = flagged(1, &gzip(&session("acme").message.encode_to_vec()));
    assert_eq!(call(&server, BORROW, Some("gzip"), whole(small)).await.0, Code::Ok);
}

#[tokio::test]
async fn a_report_keeps_its_larger_bound() {
    let server = server(ROOMY, |config| config.port.max_report_bytes = 2 << 20).await;
    let report = |events: usize| {
        let events = (0..events).map(|event| usage(&format!("organization-{}", event % 7), 1.0));
        ReportRequest { events: events.collect() }.encode_to_vec()
    };
    let (fits, too_large) = (report(30_000), report(60_000));
    assert!(fits.len() > 1 << 20 && fits.len() < 2 << 20, "{}", fits.len());
    assert!(too_large.len() > 2 << 20, "{}", too_large.len());
    for (message, expected) in [(fits, Code::Ok), (too_large, Code::InvalidArgument)] {
        let body = flagged(1, &gzip(&message));
        assert!(body.len() < 64 << 10, "{}", body.len());
        let (code, words, _) = call(&server, REPORT, Some("gzip"), whole(body)).await;
        assert_eq!(code, expected, "{words}");
    }
    assert_eq!(metric(&server.running, "tgm_session_usage_events_total").await, 30_000);
}
