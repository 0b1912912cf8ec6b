//! Servers of one fleet on a real PostgreSQL: every server takes every call.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use lease::Reason;
use rcgen::SanType;
use store::testing::cluster::Cluster;
use tgm_session::{Registry, SessionRequest};
use tgm_session_server::api::{Done, SessionPage};
use tgm_session_server::{Config, Policy, Running, Server};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataKey;
use tonic::{Code, Request};
use wire::control::Reason as WireReason;
use wire::control::attach_response::Event;
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;
use wire::worker::KeepAliveRequest;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as Kept;
use wire::worker::return_worker_response::Status as Returned;
use wire::worker::worker_pool_client::WorkerPoolClient;

use crate::admin_client::raw;
use crate::attached::Attached;
use crate::auth::two_indexers;
use crate::certificates::{Authority, Files};
use crate::grpc_web::browser;
use crate::harness::{Client, ROOMY, channel, eventually, get, session, text, worker};
use crate::usage::egress;

/// The database of a fleet.
enum Database {
    Shared { _running: Arc<Cluster> },
    Own(Option<Cluster>),
}

/// A session of the database. Its transaction is rolled back when it is dropped.
struct Session(Child);

impl Session {
    /// Runs `sql`, and waits until it prints `expected`.
    fn begin(port: u16, sql: &str, expected: &str) -> Self {
        let mut psql = Command::new("psql")
            .args(["-qAtX", "-h", "127.0.0.1", "-p", &port.to_string(), "-U", "tgm", "postgres"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        psql.stdin.as_mut().unwrap().write_all(sql.as_bytes()).unwrap();
        let mut said = String::new();
        BufReader::new(psql.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), expected);
        Self(psql)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Servers on one database.
pub(crate) struct TestFleet {
    database: Database,
    pub(crate) port: u16,
    pub(crate) schema: String,
    policy: String,
    change: Box<dyn Fn(&mut Config) + Send + Sync>,
    pub(crate) servers: Vec<Running>,
}

impl TestFleet {
    /// Starts so many servers; the first one leads. `None` where PostgreSQL is missing.
    pub(crate) async fn start(policy: &str, servers: usize) -> Option<Self> {
        Self::start_with(policy, servers, |_| {}).await
    }

    /// As [`TestFleet::start`], with changed settings.
    pub(crate) async fn start_with(
        policy: &str,
        servers: usize,
        change: impl Fn(&mut Config) + Send + Sync + 'static,
    ) -> Option<Self> {
        let cluster = tokio::task::spawn_blocking(Cluster::shared).await.unwrap()?;
        let port = cluster.port;
        Self::on((Database::Shared { _running: cluster }, port), policy, servers, Box::new(change))
            .await
    }

    /// As [`TestFleet::start`], on a database that no other test uses. The leadership lapses soon.
    async fn start_alone(policy: &str, servers: usize) -> Option<Self> {
        let cluster = tokio::task::spawn_blocking(Cluster::start).await.unwrap()?;
        let (port, database) = (cluster.port, Database::Own(Some(cluster)));
        Self::on((database, port), policy, servers, Box::new(lapses_soon)).await
    }

    async fn on(
        (database, port): (Database, u16),
        policy: &str,
        servers: usize,
        change: Box<dyn Fn(&mut Config) + Send + Sync>,
    ) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let schema = format!("servers_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let policy = policy.to_owned();
        let mut fleet = Self { database, port, schema, policy, change, servers: Vec::new() };
        for _ in 0..servers {
            let server = fleet.server().await;
            fleet.servers.push(server);
            if fleet.servers.len() == 1 {
                eventually("the leader changes", async || fleet.servers[0].store().leads()).await;
            }
        }
        for server in &fleet.servers {
            let address = server.admin_address();
            eventually("it is ready", async || get(address, "/readyz", "").await.0 == 200).await;
        }
        Some(fleet)
    }

    fn config(&self) -> Config {
        let policy = Policy::parse(&self.policy, "test.toml").unwrap().policy;
        let Self { port, schema, .. } = self;
        let url = format!("postgres://tgm@127.0.0.1:{port}/postgres?schema={schema}");
        let mut config = Config::new(policy, url.parse().unwrap());
        config.listen.set_port(0);
        config.admin_listen.set_port(0);
        config.threads = 2;
        // So long that no leadership lapses where the machine is busy.
        config.fleet.leader_ttl = Duration::from_secs(5);
        (self.change)(&mut config);
        config
    }

    async fn server(&self) -> Running {
        Server::bind(self.config()).await.unwrap().start().await.unwrap()
    }

    /// Runs `sql`.
    pub(crate) fn run(&self, sql: &str) {
        drop(Session::begin(self.port, &format!("{sql}; SELECT 'done';\n"), "done"));
    }

    /// Locks the row that every commit changes, until the session is dropped.
    fn hold_commits(&self) -> Session {
        let Self { port, schema, .. } = self;
        let sql = format!("BEGIN; SELECT 'held' FROM {schema}.journal FOR UPDATE;\n");
        Session::begin(*port, &sql, "held")
    }

    async fn kill_database(&mut self) {
        self.with_database(Cluster::kill).await;
    }

    async fn resume_database(&mut self) {
        self.with_database(Cluster::resume).await;
    }

    async fn with_database(&mut self, act: fn(&mut Cluster)) {
        let Database::Own(database) = &mut self.database else { panic!("others use it") };
        let mut cluster = database.take().unwrap();
        let acted = tokio::task::spawn_blocking(move || {
            act(&mut cluster);
            cluster
        });
        *database = Some(acted.await.unwrap());
    }

    fn leader(&self) -> &Running {
        self.servers.iter().find(|server| server.store().leads()).expect("a leader")
    }

    fn standby(&self) -> &Running {
        self.servers.iter().find(|server| !server.store().leads()).expect("a standby")
    }
}

fn lapses_soon(config: &mut Config) {
    config.fleet.leader_ttl = Duration::from_secs(2);
}

fn client(server: &Running) -> Client {
    Client::of(server.grpc_address())
}

pub(crate) async fn live(server: &Running) -> u64 {
    server.store().live().await.unwrap().iter().map(|(_, leases)| leases).sum()
}

#[tokio::test]
async fn a_lease_lives_its_whole_life_at_a_server_that_does_not_lead() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let mut client = client(fleet.standby());
    let answer = client.ask(session("acme")).await.unwrap();
    assert!(text(answer.metadata(), "x-lease-ttl-ms").is_some(), "metadata is passed on");
    let key = answer.into_inner().worker_key;
    assert_eq!(live(fleet.leader()).await, 1);
    assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    assert_eq!(client.count("t1r", "acme").await, 1);
    assert_eq!(client.give_back(&key).await, Returned::Returned);
    assert_eq!(client.give_back(&key).await, Returned::MissingKey);
    assert_eq!(live(fleet.leader()).await, 0);
    let (_, metrics) = get(fleet.standby().admin_address(), "/metrics", "").await;
    assert!(metrics.contains("tgm_session_forwarded_total 5"), "{metrics}");
}

#[tokio::test]
async fn a_refusal_of_the_leader_is_the_same_at_every_server() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let [mut direct, mut passed_on] = [fleet.leader(), fleet.standby()].map(client);
    for _ in 0..10 {
        passed_on.borrow(session("acme")).await;
    }
    assert_eq!(passed_on.refused(session("acme")).await, direct.refused(session("acme")).await);
    for ask in [session("acme").service("nothing"), session("acme").borrow_id("no id")] {
        let direct = direct.ask(ask.clone()).await.unwrap_err();
        let passed_on = passed_on.ask(ask).await.unwrap_err();
        assert_eq!(
            (passed_on.code(), passed_on.message()),
            (direct.code(), direct.message()),
            "{passed_on:?}"
        );
    }
}

#[tokio::test]
async fn the_leader_identifies_the_callers_of_every_server() {
    let Some(fleet) = TestFleet::start(&two_indexers(), 2).await else { return };
    let mut standby = client(fleet.standby());
    let refused = standby.ask(session("acme")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut west = standby.with_key("west-old");
    let key = west.borrow(session("acme")).await;
    let mut east = standby.with_key("east-key");
    assert_eq!(east.keep_alive(&key).await.unwrap(), Kept::Failed);
    assert_eq!(west.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_borrow_whose_caller_is_gone_leaves_no_lease_at_the_leader() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let (leader, standby) = (fleet.leader(), fleet.standby());
    let held = fleet.hold_commits();
    let id = "00112233445566778899aabbccddeeff";
    let mut calls = Vec::new();
    for (ask, at_once) in [(session("acme"), 1), (session("acme").borrow_id(id), 2)] {
        let mut client = client(standby);
        calls.push(tokio::spawn(async move {
            let answer = client.ask(ask).await;
            panic!("commits are held, but there is an answer: {answer:?}");
        }));
        eventually("the grant is applied", async || live(leader).await == at_once).await;
    }
    calls.iter().for_each(JoinHandle::abort);
    // Commits are still held: the slots are free at once.
    eventually("the leases are taken back", async || live(leader).await == 0).await;
    drop(held);
    let key = client(standby).borrow(session("acme").borrow_id(id)).await;
    assert_eq!(client(standby).keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn an_attached_client_is_told_of_a_revocation_through_a_server_that_does_not_lead() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let standby = fleet.standby();
    let key = client(standby).borrow(session("acme")).await;
    let mut attached = Attached::over(channel(standby.grpc_address()), None).await.unwrap();
    let answer = attached.keep_alive(&[&key, "nonsense"]).await;
    assert_eq!((answer.failed, answer.unavailable), (vec![1], vec![]));
    fleet.leader().revoke(key.parse().unwrap(), Reason::Operator).await.unwrap();
    let Some(Event::Revoked(revoked)) = attached.next().await.unwrap() else {
        panic!("not a revocation")
    };
    assert_eq!((&*revoked.worker_key, revoked.reason()), (&*key, WireReason::Operator));
}

#[tokio::test]
async fn a_planned_change_of_the_leader_fails_no_call_and_ends_no_stream() {
    let Some(mut fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let [first, second] = [0, 1].map(|place| fleet.servers[place].grpc_address());
    let mut attached = Vec::new();
    let mut keys = Vec::new();
    for address in [first, second] {
        keys.push(Client::of(address).borrow(session("acme")).await);
        attached.push(Attached::over(channel(address), None).await.unwrap());
    }
    let stop = Arc::new(AtomicBool::new(false));
    // So few that a machine with two cores changes the leader within the two seconds that calls are held.
    let callers: Vec<_> = (0..8)
        .map(|number| {
            let (stop, mut client) = (stop.clone(), Client::of([first, second][number % 2]));
            tokio::spawn(async move {
                let mut calls = 0;
                while !stop.load(Ordering::Relaxed) {
                    let key = client.borrow(worker("acme", "trace", 100)).await;
                    assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
                    assert_eq!(client.give_back(&key).await, Returned::Returned);
                    calls += 3;
                }
                calls
            })
        })
        .collect();
    for _ in 0..6 {
        let before = fleet.servers.iter().position(|server| server.store().leads()).unwrap();
        eventually("the leader changes", async || {
            fleet.servers[before].store().members().len() == 2
        })
        .await;
        fleet.servers[before].store().step_down(false).await.unwrap();
        eventually("the leader changes", async || fleet.servers[1 - before].store().leads()).await;
        for attached in &mut attached {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let answer = attached.keep_alive(&keys).await;
            assert_eq!((answer.failed, answer.unavailable), (vec![], vec![]));
        }
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
    assert_eq!(live(fleet.leader()).await, 2);
    let stopped = fleet.servers.remove(0);
    stopped.stop().await.unwrap();
    eventually("the leader changes", async || fleet.servers[0].store().leads()).await;
    assert_eq!(live(&fleet.servers[0]).await, 2);
}

#[tokio::test]
async fn an_operator_lists_and_acts_at_every_server() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let (leader, standby) = (fleet.leader(), fleet.standby());
    let mut client = client(leader);
    let key = client.borrow(session("acme")).await;
    let address = standby.admin_address();
    let host = address.to_string();
    let ask = async |method, path: &str| raw(address, method, path, &[("host", &host)], "").await;
    let page: SessionPage = ask("GET", "/api/sessions").await.read();
    let [session] = &page.sessions[..] else { panic!("{page:?}") };
    let path = format!("/api/sessions/{}?note=a%20test", session.lease);
    assert_eq!(ask("DELETE", &path).await.read::<Done>().ended, 1);
    assert_eq!(client.keep_alive(&key).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(get(address, "/readyz", "").await.0, 200);
}

#[tokio::test]
async fn a_request_of_an_operator_that_is_too_long_is_refused_where_it_arrives() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    for server in [fleet.leader(), fleet.standby()] {
        let address = server.admin_address();
        let headers = [("host", &*address.to_string()), ("content-type", "application/json")];
        let path = "/api/organizations/acme/limits/t1r";
        let answer = raw(address, "PUT", path, &headers, &" ".repeat(70_000)).await;
        assert_eq!(answer.status, 413, "{answer:?}");
    }
}

#[tokio::test]
async fn nobody_speaks_for_a_server_of_the_fleet_without_its_secret() {
    let Some(fleet) = TestFleet::start(&two_indexers(), 2).await else { return };
    for (server, secret) in [(fleet.leader(), "0"), (fleet.standby(), &"0".repeat(64))] {
        let mut request = Request::new(session("acme").message);
        let metadata = request.metadata_mut();
        metadata.insert("x-tgm-fleet-secret", secret.parse().unwrap());
        metadata.insert("x-tgm-fleet-peer", "127.0.0.1:1".parse().unwrap());
        metadata.insert("x-tgm-fleet-indexer", "west".parse().unwrap());
        let mut client = client(server);
        let refused = client.pool.borrow_worker(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn a_call_that_arrives_while_the_leader_changes_is_held_and_answered() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let (leader, standby) = (fleet.leader(), fleet.standby());
    let [mut here, mut there] = [leader, standby].map(client);
    let key = there.borrow(session("acme")).await;
    let handed_over = leader.store().retire();
    let (held_here, held_there) = tokio::join!(
        here.borrow(worker("acme", "trace", 10)),
        there.borrow(worker("acme", "trace", 10))
    );
    handed_over.await.unwrap();
    eventually("the other one leads", async || standby.store().leads()).await;
    for key in [key, held_here, held_there] {
        assert_eq!(here.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    }
}

#[tokio::test]
async fn a_leader_that_stops_does_not_wait_for_servers_that_have_passed_calls_on() {
    let change = |config: &mut Config| config.port.drain_timeout = Duration::from_secs(600);
    let Some(mut fleet) = TestFleet::start_with(ROOMY, 2, change).await else { return };
    let mut there = client(fleet.standby());
    let key = there.borrow(session("acme")).await;
    let leader = fleet.servers.remove(0);
    let stopped = tokio::time::timeout(Duration::from_secs(60), leader.stop());
    stopped.await.expect("no connection is waited for").unwrap();
    assert_eq!(there.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_borrow_at_a_leader_that_hangs_is_answered_by_the_next_one() {
    let Some(fleet) = TestFleet::start_with(ROOMY, 1, lapses_soon).await else { return };
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, schema) = (silent.local_addr().unwrap(), &fleet.schema);
    let sql = format!(
        "UPDATE {schema}.fleet SET epoch = epoch + 1, leader = repeat('a', 32), released = false, \
         address = '{address}'"
    );
    fleet.run(&sql);
    let (_, leader) = fleet.servers[0].store().fleet().unwrap();
    let is_other = || leader.borrow().as_ref().is_some_and(|leader| !leader.is_self);
    eventually("another server leads", async || is_other()).await;
    // The server stands by, passes the borrow on to a port that says nothing, and then leads.
    let key = client(&fleet.servers[0]).borrow(session("acme")).await;
    assert!(fleet.servers[0].store().leads());
    assert_eq!(client(&fleet.servers[0]).keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn without_a_database_leases_are_kept_alive_while_the_leadership_is_valid_and_then_nothing() {
    let Some(mut fleet) = TestFleet::start_alone(ROOMY, 2).await else { return };
    let [leader, standby] = [fleet.leader(), fleet.standby()].map(Running::grpc_address);
    let mut standby = Client::of(standby);
    let key = standby.borrow(session("acme")).await;
    fleet.kill_database().await;
    assert_eq!(standby.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    eventually("the leadership has lapsed", async || {
        Client::of(leader).keep_alive(&key).await.is_err()
    })
    .await;
    let busy = standby.ask(worker("acme", "trace", 10)).await.unwrap();
    assert_eq!(busy.get_ref().status(), BorrowStatus::ResourceExhausted);
    assert_eq!(text(busy.metadata(), "x-denied-scope").as_deref(), Some("server"));
    for refused in [
        standby.ask(session("acme")).await.unwrap_err(),
        standby.keep_alive(&key).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    for server in &fleet.servers {
        let address = server.admin_address();
        eventually("it is not ready", async || get(address, "/readyz", "").await.0 == 503).await;
    }
    fleet.resume_database().await;
    eventually("a server leads again", || {
        let mut client = standby.clone();
        let key = &key;
        async move { client.keep_alive(key).await.is_ok() }
    })
    .await;
    // The count waits for changes that are not committed yet.
    eventually("the lease counts", || {
        let mut client = standby.clone();
        async move { client.state("t1r", "acme").await.is_ok_and(|it| it.borrowed_workers == 1) }
    })
    .await;
}

/// A budget of one byte a day.
const SOLD: &str = "
    [services.t1r]
    [plans.small]
    budgets = { egress_bytes = { amount = 1.0, per = 'day' } }
    [organizations.acme]
    plan = 'small'
";

#[tokio::test]
async fn a_report_at_any_server_is_counted_once_and_spends_the_budget_at_the_leader() {
    let Some(fleet) = TestFleet::start(SOLD, 2).await else { return };
    let key = client(fleet.leader()).borrow(session("acme")).await;
    let mut reporter = UsageServiceClient::new(channel(fleet.standby().grpc_address()))
        .send_compressed(CompressionEncoding::Gzip);
    let event = egress("acme", 1.0);
    for _ in 0..2 {
        let mut request = Request::new(ReportRequest { events: vec![event.clone()] });
        request.metadata_mut().insert("x-idempotency-key", "one".parse().unwrap());
        assert!(reporter.report(request).await.unwrap().into_inner().revoked);
    }
    let ended = client(fleet.standby()).keep_alive(&key).await.unwrap_err();
    assert_eq!(ended.code(), Code::ResourceExhausted);
    let usage = fleet.leader().store().usage().await.unwrap();
    let [count] = &usage[..] else { panic!("{usage:?}") };
    assert!((count.used.day.1 - 1.0).abs() < 1e-9, "{count:?}");
}

#[tokio::test]
async fn calls_of_a_browser_and_compressed_ones_are_passed_on() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let address = fleet.standby().grpc_address();
    let mut web = WorkerPoolClient::new(browser(address));
    let answer = web.borrow_worker(session("acme").message).await.unwrap();
    assert!(text(answer.metadata(), "x-lease-ttl-ms").is_some());
    let mut zipped =
        WorkerPoolClient::new(channel(address)).send_compressed(CompressionEncoding::Gzip);
    let worker_key = answer.into_inner().worker_key;
    let request = KeepAliveRequest { worker_key, ..KeepAliveRequest::default() };
    let kept = zipped.keep_alive(request).await.unwrap().into_inner();
    assert_eq!(kept.status(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_call_that_a_standby_takes_has_not_too_many_header_fields_for_the_leader() {
    let Some(fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let mut pool = client(fleet.standby()).pool;
    let ask = |fields: usize| {
        let mut request = Request::new(session("acme").message);
        for field in 0..fields {
            let name = MetadataKey::from_bytes(format!("x-{field}").as_bytes()).unwrap();
            request.metadata_mut().insert(name, "value".parse().unwrap());
        }
        request
    };
    let mut fields = 100;
    let refused = loop {
        match pool.borrow_worker(ask(fields)).await {
            Ok(answer) => break answer,
            Err(refused) => assert!(refused.message().contains("431"), "{refused:?}"),
        }
        fields -= 1;
    };
    assert_eq!(refused.into_inner().status(), BorrowStatus::Borrowed);
    assert!(fields > 90, "{fields}");
}

#[tokio::test]
async fn servers_show_each_other_certificates_where_their_ports_ask_for_them() {
    let authority = Authority::new();
    let signed = authority.sign(|params| {
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
    });
    let files = Files::new(&signed, Some(&authority));
    let tls = files.tls.clone();
    let change = move |config: &mut Config| {
        config.tls = tls.clone();
        config.fleet.ca = tls.client_ca.clone();
        (config.fleet.cert, config.fleet.key) = (tls.certificate.clone(), tls.key.clone());
    };
    let Some(fleet) = TestFleet::start_with(ROOMY, 2, change).await else { return };
    let [ca, cert, key] = ["clients.pem", "server.pem", "server.key"].map(|name| files.path(name));
    let url = format!(
        "tgm://localhost:{}?ca-file={}&client-cert-file={}&client-key-file={}",
        fleet.standby().grpc_address().port(),
        ca.display(),
        cert.display(),
        key.display()
    );
    let pool = Registry::default().connect(&url).await.unwrap();
    let session = pool.borrow(SessionRequest::new("t1r", "acme")).await.unwrap();
    assert_eq!(live(fleet.leader()).await, 1);
    session.release().await.unwrap();
}

#[tokio::test]
async fn a_leader_whose_store_fails_gives_up_and_stops_with_an_error() {
    let Some(mut fleet) = TestFleet::start(ROOMY, 2).await else { return };
    let failed = fleet.servers.remove(0);
    let mut other = client(&fleet.servers[0]);
    let key = other.borrow(session("acme")).await;
    store::testing::poison(failed.store());
    tokio::time::timeout(Duration::from_secs(60), failed.useless()).await.expect("it gives up");
    eventually("the leader changes", async || fleet.servers[0].store().leads()).await;
    assert_eq!(other.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    let error = failed.stop().await.unwrap_err().to_string();
    assert!(error.contains("the store failed"), "{error}");
}
