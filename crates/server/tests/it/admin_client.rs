//! A client of the admin API that checks every answer against the OpenAPI document.

use std::net::SocketAddr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tgm_session_server::api::{Event, Problem};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;

use crate::harness::TestServer;

/// The timeout of one read. It is long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An HTTP response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn read<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The reason of a refusal, which must have this status.
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let problem: Problem = serde_json::from_str(&self.body).unwrap();
        problem.error
    }
}

/// Sends one HTTP/1.1 request with these headers on a new connection. Only `connection: close` and
/// the length of the body are added.
pub(crate) async fn raw(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    request += &format!("content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer));
    read.await.expect("an answer in time").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// A client of the admin API.
#[derive(Clone, Debug)]
pub(crate) struct AdminClient {
    pub(crate) address: SocketAddr,
    token: Option<String>,
    pub(crate) document: Value,
}

impl AdminClient {
    pub(crate) async fn of(server: &TestServer) -> Self {
        Self::with(server, None).await
    }

    pub(crate) async fn with(server: &TestServer, token: Option<&str>) -> Self {
        let address = server.running.admin_address();
        let token = token.map(|token| format!("Bearer {token}"));
        let mut client = Self { address, token, document: Value::Null };
        client.document = client.send("GET", "/api/openapi.json", "").await.read();
        client
    }

    async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let host = self.address.to_string();
        let mut headers = vec![("host", &*host)];
        headers.extend(self.token.as_deref().map(|token| ("authorization", token)));
        if !body.is_empty() {
            headers.push(("content-type", "application/json"));
        }
        raw(self.address, method, path, &headers, body).await
    }

    /// Sends a request, and checks that the document has the answer.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let answer = self.send(method, path, body).await;
        self.check(method, path, &answer);
        answer
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        self.ask("GET", path, "").await.read()
    }

    pub(crate) async fn put<T: DeserializeOwned>(&self, path: &str, body: &Value) -> T {
        self.ask("PUT", path, &body.to_string()).await.read()
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> T {
        self.ask("DELETE", path, "").await.read()
    }

    /// Checks that the document has this answer, and that browsers may not store the answer.
    pub(crate) fn check(&self, method: &str, path: &str, answer: &Answer) {
        let path = path.split('?').next().unwrap();
        let method = method.to_ascii_lowercase();
        let paths = self.document["paths"].as_object().unwrap();
        // An exact path has precedence over a template with parameters.
        let fits = |template: &&String| fits(template, path);
        let template = paths.get_key_value(path).map(|(template, _)| template);
        let template = template.or_else(|| paths.keys().find(fits));
        let template = template.unwrap_or_else(|| panic!("{path} is not in the document"));
        let answers = &paths[template][&method]["responses"];
        let documented = &answers[answer.status.to_string()]["content"];
        let kind = answer.header("content-type").unwrap_or_default();
        assert!(
            documented.get(kind).is_some(),
            "{method} {template}: {} {kind} is not among {answers}",
            answer.status
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
    }

    /// Opens a stream of events, or returns the HTTP status of the refusal.
    pub(crate) async fn listen(&self) -> Result<Events, u16> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET /api/events HTTP/1.1\r\nhost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let head = lines.next_line().await.unwrap().unwrap();
        match head.split(' ').nth(1).unwrap() {
            "200" => Ok(Events { lines, name: None }),
            refused => Err(refused.parse().unwrap()),
        }
    }
}

/// Whether `path` matches the template.
fn fits(template: &str, path: &str) -> bool {
    let (mut names, mut parts) = (template.split('/'), path.split('/'));
    names.by_ref().zip(parts.by_ref()).all(|(name, part)| name.starts_with('{') || name == part)
        && template.split('/').count() == path.split('/').count()
}

/// A stream of events.
#[derive(Debug)]
pub(crate) struct Events {
    /// The name of the event whose data comes next.
    name: Option<String>,
    lines: Lines<BufReader<TcpStream>>,
}

impl Events {
    /// The name and the data of the next event; `None` at the end. Cancellation safe.
    pub(crate) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            let line = tokio::time::timeout(PATIENCE, self.lines.next_line());
            let line = line.await.expect("an event in time").unwrap_or_default()?;
            if let Some(found) = line.strip_prefix("event: ") {
                self.name = Some(found.trim_end().to_owned());
            } else if let Some(data) = line.strip_prefix("data: ") {
                let data: Value = serde_json::from_str(data).unwrap();
                let _: Event = serde_json::from_value(data.clone()).unwrap();
                return Some((self.name.take().expect("an event has a name"), data));
            }
        }
    }

    /// The next comment. The server sends comments while it has no events.
    pub(crate) async fn next_comment(&mut self) -> String {
        loop {
            let line = self.lines.next_line().await.unwrap().expect("the stream goes on");
            if let Some(comment) = line.strip_prefix(':') {
                return comment.trim().to_owned();
            }
        }
    }

    /// The next event with this name. Other events are skipped.
    pub(crate) async fn next_called(&mut self, name: &str) -> Value {
        loop {
            let (found, data) = self.next().await.expect("the stream goes on");
            if found == name {
                return data;
            }
        }
    }
}
