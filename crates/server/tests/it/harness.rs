//! A server in this process with a manual clock, and a client with short methods.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use store::testing::{ManualClock, eventually};
use tgm_session_server::store::{Options, Recovered, StoreUrl, Unavailable};
use tgm_session_server::{Config, Policy, Running, Server};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{
    BorrowWorkerRequest, BorrowWorkerResponse, KeepAliveRequest, ReturnWorkerRequest, WorkersState,
    WorkersStateRequest, keep_alive_response, return_worker_response,
};

/// A running server and its clock.
pub(crate) struct TestServer {
    pub(crate) running: Running,
    pub(crate) clock: Arc<ManualClock>,
}

/// Limits that no test reaches by accident, for a service of sessions and one of workers.
pub(crate) const ROOMY: &str = "
    [services.t1r]
    max_per_organization = 10
    [services.t2w]
    max_per_organization = 100
";

/// The longest time of a stop that has no call to wait for, even on a busy machine.
pub(crate) const LONGEST_STOP: Duration = Duration::from_secs(40);

pub(crate) fn config(policy: &str, clock: &Arc<ManualClock>, store: StoreUrl) -> Config {
    let policy = Policy::parse(policy, "test.toml").unwrap().policy;
    let mut config = Config::new(policy, store);
    config.listen.set_port(0);
    config.admin_listen.set_port(0);
    config.threads = 2;
    config.clock = clock.clone();
    config
}

impl TestServer {
    pub(crate) async fn memory(policy: &str) -> Self {
        let clock = ManualClock::new();
        Self::start(config(policy, &clock, StoreUrl::Memory), clock).await
    }

    /// A server with a drain timeout far longer than [`LONGEST_STOP`].
    pub(crate) async fn slow_to_drain(policy: &str) -> Self {
        let clock = ManualClock::new();
        let mut config = config(policy, &clock, StoreUrl::Memory);
        config.port.drain_timeout = 10 * LONGEST_STOP;
        Self::start(config, clock).await
    }

    pub(crate) async fn file(policy: &str, path: &Path, clock: Arc<ManualClock>) -> Self {
        let store = StoreUrl::File { path: path.to_owned(), make_folders: false };
        Self::start(config(policy, &clock, store), clock).await
    }

    pub(crate) async fn on_disk(
        policy: &str,
        disk: impl redb::StorageBackend,
        clock: Arc<ManualClock>,
    ) -> Self {
        let config = config(policy, &clock, StoreUrl::Memory);
        let options = Options { clock: clock.clone(), ..Options::default() };
        let store = Recovered::on_backend(disk, options).unwrap();
        let running = Server::with_store(config, store).await.unwrap().start().await.unwrap();
        Self { running, clock }
    }

    pub(crate) async fn start(config: Config, clock: Arc<ManualClock>) -> Self {
        let running = Server::bind(config).await.unwrap().start().await.unwrap();
        Self { running, clock }
    }

    pub(crate) fn client(&self) -> Client {
        Client::of(self.running.grpc_address())
    }

    /// Lets time pass in small steps, so that a disk that does not hang confirms its changes
    /// meanwhile.
    pub(crate) fn pass(&self, time: Duration) {
        let (mut left, mut looks) = (time, 0..200);
        while !left.is_zero() {
            let step = left.min(Duration::from_millis(500));
            self.clock.jump(step);
            self.running.store().tick();
            left -= step;
            let stalls = || self.running.store().ready() == Err(Unavailable::Stalled);
            while stalls() && looks.next().is_some() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// The number of leases that count now, of all services.
    pub(crate) async fn live(&self) -> u64 {
        self.running.store().live().await.unwrap().iter().map(|(_, leases)| leases).sum()
    }

    pub(crate) async fn stop(self) -> Arc<ManualClock> {
        self.running.stop().await.unwrap();
        self.clock
    }
}

pub(crate) fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

/// A borrow request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ask {
    pub(crate) message: BorrowWorkerRequest,
    pub(crate) borrow_id: Option<String>,
}

/// A session of `t1r`.
pub(crate) fn session(organization: &str) -> Ask {
    let (service, organization_id) = ("t1r".to_owned(), organization.to_owned());
    let message = BorrowWorkerRequest { service, organization_id, ..Default::default() };
    Ask { message, borrow_id: None }
}

/// A worker of `t2w`.
pub(crate) fn worker(organization: &str, trace: &str, cap: i64) -> Ask {
    let mut ask = session(organization).service("t2w").trace(trace);
    ask.message.max_worker_for_trace_id = cap;
    ask
}

impl Ask {
    pub(crate) fn service(mut self, service: &str) -> Self {
        self.message.service = service.to_owned();
        self
    }

    pub(crate) fn api_key(mut self, api_key: &str) -> Self {
        self.message.api_key_id = api_key.to_owned();
        self
    }

    pub(crate) fn trace(mut self, trace: &str) -> Self {
        self.message.trace_id = trace.to_owned();
        self
    }

    pub(crate) fn borrow_id(mut self, borrow_id: &str) -> Self {
        self.borrow_id = Some(borrow_id.to_owned());
        self
    }
}

/// A client of the worker pool.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) pool: WorkerPoolClient<Channel>,
    key: Option<String>,
}

impl Client {
    pub(crate) fn of(address: SocketAddr) -> Self {
        Self { pool: WorkerPoolClient::new(channel(address)), key: None }
    }

    /// The same client with an indexer's key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self { pool: self.pool.clone(), key: Some(key.to_owned()) }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = &self.key {
            request.metadata_mut().insert("x-api-key", key.parse().unwrap());
        }
        request
    }

    pub(crate) async fn ask(&mut self, ask: Ask) -> Result<Response<BorrowWorkerResponse>, Status> {
        let mut request = self.request(ask.message);
        if let Some(borrow_id) = ask.borrow_id {
            request.metadata_mut().insert("x-borrow-id", borrow_id.parse().unwrap());
        }
        self.pool.borrow_worker(request).await
    }

    /// Borrows a lease that must be granted, and returns its key.
    pub(crate) async fn borrow(&mut self, ask: Ask) -> String {
        let answer = self.ask(ask).await.unwrap().into_inner();
        assert_eq!(answer.status(), BorrowStatus::Borrowed, "{answer:?}");
        answer.worker_key
    }

    /// Borrows a lease that must be denied, and returns scope, active and limit of the denial.
    pub(crate) async fn refused(&mut self, ask: Ask) -> (String, u64, u64) {
        let answer = self.ask(ask).await.unwrap();
        assert_eq!(answer.get_ref().status(), BorrowStatus::ResourceExhausted, "{answer:?}");
        assert_eq!(answer.get_ref().worker_key, "");
        let number = |name| text(answer.metadata(), name).unwrap().parse().unwrap();
        let scope = text(answer.metadata(), "x-denied-scope").unwrap();
        let (active, max) = (number("x-denied-active"), number("x-denied-max"));
        // Old clients print the maximum of the state and do not read metadata.
        let state = answer.get_ref().worker_state.as_ref().unwrap();
        assert_eq!(
            (state.max_workers.unsigned_abs(), state.available_workers),
            (max, 0),
            "{scope}"
        );
        (scope, active, max)
    }

    pub(crate) async fn keep_alive(
        &mut self,
        key: &str,
    ) -> Result<keep_alive_response::Status, Status> {
        let message = KeepAliveRequest { worker_key: key.to_owned(), ..Default::default() };
        let request = self.request(message);
        Ok(self.pool.keep_alive(request).await?.into_inner().status())
    }

    pub(crate) async fn give_back(&mut self, key: &str) -> return_worker_response::Status {
        self.give_back_after(key, None).await.unwrap()
    }

    pub(crate) async fn give_back_after(
        &mut self,
        key: &str,
        minimal_life: Option<prost_types::Duration>,
    ) -> Result<return_worker_response::Status, Status> {
        let request = self.request(ReturnWorkerRequest {
            worker_key: key.to_owned(),
            minimal_worker_life_duration: minimal_life,
        });
        Ok(self.pool.return_worker(request).await?.into_inner().status())
    }

    pub(crate) async fn give_back_borrow(
        &mut self,
        borrow_id: &str,
    ) -> Result<return_worker_response::Status, Status> {
        let mut request = self.request(ReturnWorkerRequest::default());
        request.metadata_mut().insert("x-borrow-id", borrow_id.parse().unwrap());
        Ok(self.pool.return_worker(request).await?.into_inner().status())
    }

    pub(crate) async fn state(
        &mut self,
        service: &str,
        organization: &str,
    ) -> Result<WorkersState, Status> {
        let request = self.request(WorkersStateRequest {
            service: service.to_owned(),
            organization_id: organization.to_owned(),
            ..Default::default()
        });
        Ok(self.pool.workers_state(request).await?.into_inner().worker_state.unwrap())
    }

    /// The number of leases that count in the pool.
    pub(crate) async fn count(&mut self, service: &str, organization: &str) -> i64 {
        self.state(service, organization).await.unwrap().borrowed_workers
    }
}

pub(crate) fn text(metadata: &MetadataMap, name: &str) -> Option<String> {
    metadata.get(name).map(|value| value.to_str().unwrap().to_owned())
}

pub(crate) fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// Sends one HTTP/1.1 GET, and returns the status and the body.
pub(crate) async fn get(address: SocketAddr, path: &str, header: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
