use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use clap::Parser;
use connect::{Host, Protocol, Way};
use serde_json::{Value, json};

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: AdminArgs,
}

fn parse(line: &[&str]) -> Result<AdminArgs, clap::Error> {
    let line = ["test"].iter().chain(line);
    Line::try_parse_from(line).map(|line| line.args)
}

#[test]
fn the_token_is_never_shown() {
    let args = parse(&["--admin-token", "s3cret"]).expect("valid");
    let admin = Admin::new(&args).expect("valid");
    for shown in [format!("{args:?}"), format!("{admin:?}"), format!("{:?}", admin.authorization)] {
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    let broken = parse(&["--admin-token", "s3cret\n"]).expect("a token");
    let Err(Failure::Usage(problem)) = Admin::new(&broken) else { panic!("it was taken") };
    assert!(!problem.contains("s3cret"), "{problem}");
}

#[test]
fn an_empty_token_and_a_timeout_of_zero_are_refused() {
    for line in [&["--admin-token", ""], &["--admin-timeout", "0s"]] {
        assert!(parse(line).is_err(), "{line:?}");
    }
}

#[test]
fn the_status_of_a_refusal_chooses_the_exit_code() {
    let admin = Admin::new(&parse(&[]).expect("valid")).expect("valid");
    let refused = |status: u16, problem: Option<&str>| {
        let status = StatusCode::from_u16(status).expect("a status");
        admin.refused(status, problem.map(str::to_owned))
    };
    for (status, code) in [(400, 2), (422, 2), (401, 3), (403, 3), (404, 1), (409, 1), (503, 4)] {
        let failure = Failure::from(refused(status, Some("why")));
        assert_eq!(failure.exit_code(), code.into(), "{status}: {failure:?}");
    }
    assert_eq!(refused(404, Some("no lease")), Fault::NotFound("no lease".into()));
    let Failure::Failed(elsewhere) = refused(404, None).into() else { panic!("no failure") };
    assert!(elsewhere.contains("http://127.0.0.1:9011") && elsewhere.contains("admin port"));
}

/// An admin client of a server whose host name resolves to these addresses.
fn admin_at(addresses: &[SocketAddr], timeout: &str) -> Admin {
    let line = ["--admin", "http://ops.example:9011", "--admin-timeout", timeout];
    let args = parse(&line).expect("valid");
    let addresses = addresses.to_vec();
    let way = Way::new(Host::new("ops.example", 9011), [], Protocol::Http1);
    let way = way.resolved_by(Arc::new(move |_, _| {
        let addresses = addresses.clone();
        Box::pin(async { Ok(addresses) })
    }));
    let link = Link::new(way, args.admin_timeout).expect("valid");
    Admin { link, ..Admin::new(&args).expect("valid") }
}

/// Answers one call with `said`, and returns a thread that returns the request.
fn answer(listener: TcpListener, said: &'static str) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut stream = listener.accept().expect("a client").0;
        let mut heard = vec![0; 4096];
        let length = stream.read(&mut heard).expect("a request");
        stream.write_all(said.as_bytes()).expect("the client listens");
        heard.truncate(length);
        String::from_utf8(heard).expect("HTTP is text")
    })
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

/// An address where connection attempts get no answer, because the queue of the listener is full.
/// It stays full until the first part of the result is dropped.
fn full() -> (impl Sized, SocketAddr) {
    let runtime = crate::runtime::current_thread().expect("a runtime");
    let (listener, address, queued) = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let listener = socket.listen(1).expect("it is bound");
        let address = listener.local_addr().expect("it is bound");
        let mut queued = Vec::new();
        let connect = || tokio::net::TcpStream::connect(address);
        while let Ok(taken) = tokio::time::timeout(Duration::from_millis(250), connect()).await {
            queued.push(taken.expect("there is room"));
        }
        (listener, address, queued)
    });
    ((listener, queued, runtime), address)
}

#[test]
fn the_second_address_is_used_when_the_first_does_not_answer() {
    let (_full, swallows) = full();
    let (listener, address) = listener();
    let asked = answer(listener, "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}");
    let answered: Value =
        admin_at(&[swallows, address], "10s").get(&["overview"], &()).expect("answered");
    assert_eq!(answered, json!({ "a": 1 }));
    let asked = asked.join().expect("no panic").to_lowercase();
    assert!(asked.starts_with("get /api/overview http/1.1\r\n"), "{asked}");
    assert!(asked.contains("host: ops.example:9011\r\n"), "{asked}");
}

#[test]
fn every_address_where_nobody_listens_is_named() {
    let (one, two) = (listener().1, listener().1);
    let asked: Result<Value, _> = admin_at(&[one, two], "10s").get(&["overview"], &());
    let Err(Fault::Failure(Failure::Unavailable(problem))) = asked else { panic!("{asked:?}") };
    assert!(problem.starts_with("nobody listens at http://ops.example:9011 ("), "{problem}");
    for address in [one, two] {
        assert!(problem.contains(&format!("{address}: Connection refused")), "{problem}");
    }
}

#[test]
fn an_address_that_does_not_answer_is_named_after_the_timeout() {
    let (_full, swallows) = full();
    let asked: Result<Value, _> = admin_at(&[swallows], "100ms").get(&["overview"], &());
    let Err(Fault::Failure(Failure::Unavailable(problem))) = asked else { panic!("{asked:?}") };
    assert!(problem.contains(&format!("{swallows}: no answer in time")), "{problem}");
}

#[test]
fn a_tls_port_that_answers_in_plain_http_is_recognized() {
    let (listener, address) = listener();
    let said = "HTTP/1.1 400 Bad Request\r\ncontent-length: 49\r\n\r\n\
                The plain HTTP request was sent to HTTPS port <1>";
    let asked = answer(listener, said);
    let answered: Result<Value, _> = admin_at(&[address], "10s").get(&["overview"], &());
    let Err(Fault::Failure(Failure::Usage(problem))) = answered else { panic!("{answered:?}") };
    assert!(problem.contains("the server speaks TLS"), "{problem}");
    assert!(problem.contains("https://"), "{problem}");
    asked.join().expect("no panic");
}

#[test]
fn an_answer_that_is_not_http_asks_whether_it_is_the_admin_port() {
    let (listener, address) = listener();
    let asked = answer(listener, "220 mail.example ESMTP\r\n");
    let answered: Result<Value, _> = admin_at(&[address], "10s").get(&["overview"], &());
    let Err(Fault::Failure(Failure::Failed(problem))) = answered else { panic!("{answered:?}") };
    assert!(problem.contains(PORT), "{problem}");
    asked.join().expect("no panic");
}
