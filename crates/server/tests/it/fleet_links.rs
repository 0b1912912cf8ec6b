//! The link on which servers of a fleet pass calls on, as a standby that breaks the rules sees it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use tgm_session_server::Config;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use wire::worker::BorrowWorkerResponse;
use wire::worker::borrow_worker_response::BorrowStatus;

use crate::fleet::{TestFleet, live};
use crate::harness::{ROOMY, eventually, session};

/// A call, or what became of one. Its path is in field 3 and its message in field 8.
#[derive(Clone, PartialEq, Message)]
struct ToLeader {
    #[prost(uint64, tag = "1")]
    call: u64,
    #[prost(uint32, tag = "2")]
    word: u32,
    #[prost(string, tag = "3")]
    path: String,
    #[prost(bytes = "bytes", tag = "8")]
    message: Bytes,
}

/// An answer, or that the leader is stopping.
#[derive(Clone, PartialEq, Message)]
struct ToStandby {
    #[prost(uint64, tag = "1")]
    call: u64,
    #[prost(uint32, tag = "2")]
    word: u32,
    #[prost(string, repeated, tag = "6")]
    names: Vec<String>,
    #[prost(string, repeated, tag = "7")]
    values: Vec<String>,
    #[prost(bytes = "bytes", tag = "8")]
    message: Bytes,
}

const CALLER_GONE: u32 = 2;
const STOPPING: u32 = 3;

/// A link that a test has opened.
struct Link {
    calls: SendStream<Bytes>,
    answers: RecvStream,
    arrived: BytesMut,
    connection: JoinHandle<()>,
    /// While it lives, the connection is open.
    _requests: SendRequest<Bytes>,
}

impl Link {
    /// Opens a link to a server, for this term.
    async fn open(address: SocketAddr, secret: &str, term: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        let request = Request::post(format!("http://{address}/tgm.session.fleet.v1.Fleet/Link"))
            .header("content-type", "application/grpc")
            .header("x-tgm-fleet-secret", secret)
            .header("x-tgm-fleet-term", term)
            .header("x-tgm-fleet-peer", "");
        let (answer, calls) = requests.send_request(request.body(()).unwrap(), false).unwrap();
        let answers = answer.await.unwrap().into_body();
        Self { calls, answers, arrived: BytesMut::new(), connection, _requests: requests }
    }

    fn send(&mut self, record: &ToLeader) {
        let record = record.encode_to_vec();
        let length = u32::try_from(record.len()).unwrap().to_be_bytes();
        self.calls.send_data([&length[..], &record].concat().into(), false).unwrap();
    }

    fn borrow(&mut self, call: u64) {
        let path = "/sf.worker.v1.WorkerPool/BorrowWorker".to_owned();
        let message = wire::framing::frame(&session("acme").message);
        self.send(&ToLeader { call, word: 0, path, message });
    }

    /// The next answer; `None` when the link has ended.
    async fn next(&mut self) -> Option<ToStandby> {
        loop {
            if let Some((length, rest)) = self.arrived.split_first_chunk()
                && let Some(record) = rest.get(..u32::from_be_bytes(*length) as usize)
            {
                let (answer, size) = (ToStandby::decode(record).unwrap(), 4 + record.len());
                drop(self.arrived.split_to(size));
                return Some(answer);
            }
            let data = self.answers.data().await?.ok()?;
            self.answers.flow_control().release_capacity(data.len()).unwrap();
            self.arrived.extend_from_slice(&data);
        }
    }
}

/// The secret of a fleet, and the term of its leader, as its servers send them.
fn secret_and_term(fleet: &TestFleet) -> (String, String) {
    let (port, schema) = (fleet.port.to_string(), &fleet.schema);
    let sql = format!("SELECT secret, epoch || '-' || leader FROM {schema}.secret, {schema}.fleet");
    let psql = Command::new("psql")
        .args(["-qAtX", "-F", " ", "-h", "127.0.0.1", "-p", &port, "-U", "tgm", "postgres", "-c"])
        .arg(sql)
        .output()
        .unwrap();
    let said = String::from_utf8(psql.stdout).unwrap();
    let (secret, term) = said.trim().split_once(' ').unwrap();
    (secret.to_owned(), term.to_owned())
}

fn granted(answer: &ToStandby) -> bool {
    let message = BorrowWorkerResponse::decode(&answer.message[wire::framing::PREFIX_BYTES..]);
    message.unwrap().status() == BorrowStatus::Borrowed
}

#[tokio::test]
async fn a_grant_is_taken_back_by_a_word_and_stays_where_the_link_breaks() {
    let Some(fleet) = TestFleet::start(ROOMY, 1).await else { return };
    let (server, (secret, term)) = (&fleet.servers[0], secret_and_term(&fleet));
    let mut link = Link::open(server.grpc_address(), &secret, &term).await;
    for call in 1..=3 {
        link.borrow(call);
        let answer = link.next().await.unwrap();
        assert!(answer.call == call && granted(&answer), "{answer:?}");
    }
    assert_eq!(live(server).await, 3);
    link.send(&ToLeader { call: 2, word: CALLER_GONE, ..ToLeader::default() });
    eventually("the lease is taken back", async || live(server).await == 2).await;
    // Nobody knows what became of the other two: their callers may have them.
    link.connection.abort();
    let mut link = Link::open(server.grpc_address(), &secret, &term).await;
    link.borrow(1);
    assert!(granted(&link.next().await.unwrap()));
    assert_eq!(live(server).await, 3);
}

#[tokio::test]
async fn a_link_is_for_one_term_and_for_those_who_know_the_secret() {
    let Some(fleet) = TestFleet::start(ROOMY, 1).await else { return };
    let (address, (secret, term)) = (fleet.servers[0].grpc_address(), secret_and_term(&fleet));
    for (secret, term) in [(&*secret, "1-00"), ("0", &*term)] {
        let mut link = Link::open(address, secret, term).await;
        assert!(link.next().await.is_none(), "{secret} {term}");
    }
    // The term ends under a link that is open.
    let mut link = Link::open(address, &secret, &term).await;
    let schema = &fleet.schema;
    fleet.run(&format!("UPDATE {schema}.fleet SET epoch = epoch + 1, leader = repeat('a', 32)"));
    eventually("it leads no more", async || !fleet.servers[0].store().leads()).await;
    link.borrow(1);
    let answer = link.next().await.unwrap();
    let is_refused = answer.names.iter().any(|name| name == "x-tgm-fleet-not-leading");
    assert!(is_refused && answer.message.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn a_link_with_an_invalid_record_ends_and_the_server_goes_on() {
    let Some(fleet) = TestFleet::start(ROOMY, 1).await else { return };
    let (address, (secret, term)) = (fleet.servers[0].grpc_address(), secret_and_term(&fleet));
    for record in [&[0, 0, 0, 1, 0xff][..], &[0xff; 4]] {
        let mut link = Link::open(address, &secret, &term).await;
        link.calls.send_data(Bytes::copy_from_slice(record), false).unwrap();
        assert!(link.next().await.is_none());
    }
    let mut link = Link::open(address, &secret, &term).await;
    link.send(&ToLeader { call: 1, path: "/nothing".to_owned(), ..ToLeader::default() });
    assert!(link.next().await.unwrap().names.iter().any(|name| name == "grpc-status"));
    link.borrow(2);
    assert!(granted(&link.next().await.unwrap()));
}

#[tokio::test]
async fn a_leader_that_stops_asks_for_the_end_of_its_links() {
    let change = |config: &mut Config| config.port.drain_timeout = Duration::from_secs(600);
    let Some(mut fleet) = TestFleet::start_with(ROOMY, 1, change).await else { return };
    let (secret, term) = secret_and_term(&fleet);
    let server = fleet.servers.remove(0);
    let mut link = Link::open(server.grpc_address(), &secret, &term).await;
    let stopped = tokio::spawn(server.stop());
    let asked = async {
        assert_eq!(link.next().await.unwrap().word, STOPPING);
        // What was sent before the end is still answered.
        link.borrow(1);
        assert_eq!(link.next().await.unwrap().call, 1);
        link.calls.send_data(Bytes::new(), true).unwrap();
        assert!(link.next().await.is_none());
        stopped.await.unwrap().unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.expect("nothing else is waited for");
}
