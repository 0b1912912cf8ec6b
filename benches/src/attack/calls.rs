//! Calls of the generated client, with a key, and the keys and services of the policy under attack.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use hex::encode;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request};
use wire::control::AttachRequest;
use wire::control::attach_response::Event;
use wire::control::session_control_client::SessionControlClient;
use wire::metering::{self, Metric};
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::keep_alive_response::Status as KeepAliveStatus;
use wire::worker::return_worker_response::Status as ReturnStatus;
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{BorrowWorkerRequest, KeepAliveRequest, ReturnWorkerRequest};

/// The key of the well-behaved client.
pub(crate) const BYSTANDER_KEY: &str = "the-key-of-the-bystander";

/// The key of the attacker, which is another indexer.
pub(crate) const ATTACKER_KEY: &str = "the-key-of-the-attacker";

/// A key that no indexer has.
pub(crate) const WRONG_KEY: &str = "a-key-that-nobody-has";

/// The service of the well-behaved client. Its TTL is short, so that lost keep-alives show.
pub(crate) const SESSIONS: &str = "t1r";

/// The service of leases that outlast every attack.
pub(crate) const LASTING: &str = "lasting";

/// The service of leases that end while the attack goes on.
pub(crate) const PASSING: &str = "passing";

/// An organization with a budget of [`METRIC`].
pub(crate) const METERED: &str = "metered";

/// The metric of the budget of [`METERED`].
pub(crate) const METRIC: &str = "units";

/// Keys of one batch of keep-alives.
const KEYS: usize = 1_000;

/// Batches that wait to be sent.
const BATCHES: usize = 8;

/// The amount of that budget.
pub(crate) const BUDGET: f64 = 10.0;

/// The policy of the server under attack, with or without indexers.
pub(crate) fn policy(ttl: Duration, passing: Duration, indexers: bool) -> String {
    let (ttl, passing) = (ttl.as_millis(), passing.as_millis());
    let mut policy = format!(
        "[services.{SESSIONS}]\nttl = \"{ttl}ms\"\n[services.{LASTING}]\nttl = \"1h\"\n\
         [services.{PASSING}]\nttl = \"{passing}ms\"\n[services.default]\nmax_per_organization = 2\n\
         [plans.metered]\nbudgets = {{ {METRIC} = {{ amount = {BUDGET}, per = \"month\" }} }}\n\
         [organizations.{METERED}]\nplan = \"metered\"\n"
    );
    let keys = [("bystander", BYSTANDER_KEY), ("attacker", ATTACKER_KEY)];
    for (name, key) in keys.into_iter().filter(|_| indexers) {
        let digest = encode(Sha256::digest(key));
        policy += &format!("[[indexers]]\nname = \"{name}\"\nkey_sha256 = \"{digest}\"\n");
    }
    policy
}

/// A caller with one connection and one key.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pool: WorkerPoolClient<Channel>,
    usage: UsageServiceClient<Channel>,
    control: SessionControlClient<Channel>,
    key: Option<&'static str>,
}

impl Caller {
    /// A caller that shows `key` on `channel`.
    pub(crate) fn new(channel: Channel, key: Option<&'static str>) -> Self {
        let usage = UsageServiceClient::new(channel.clone());
        let control = SessionControlClient::new(channel.clone());
        Self { pool: WorkerPoolClient::new(channel), usage, control, key }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(key) = self.key {
            request.metadata_mut().insert("x-api-key", MetadataValue::from_static(key));
        }
        request
    }

    /// Borrows a session of [`SESSIONS`] for `organization`, and returns its key.
    ///
    /// # Errors
    ///
    /// The borrow was not granted.
    pub(crate) async fn borrow(&mut self, organization: &str) -> anyhow::Result<String> {
        let message = borrow_request(SESSIONS, organization, "");
        self.borrow_with(message, None).await
    }

    /// Borrows as `message` says, with a borrow id if one is given, and returns the key of the
    /// lease.
    ///
    /// # Errors
    ///
    /// The borrow was not granted.
    pub(crate) async fn borrow_with(
        &mut self,
        message: BorrowWorkerRequest,
        id: Option<u128>,
    ) -> anyhow::Result<String> {
        let mut request = self.request(message);
        if let Some(id) = id {
            request.metadata_mut().insert("x-borrow-id", format!("{id:032x}").parse()?);
        }
        let answer = self.pool.borrow_worker(request).await.map_err(failure)?.into_inner();
        ensure!(answer.status() == BorrowStatus::Borrowed, "not granted: {:?}", answer.status());
        Ok(answer.worker_key)
    }

    /// Keeps a lease alive, and returns whether it still exists.
    ///
    /// # Errors
    ///
    /// The call failed.
    pub(crate) async fn keep_alive(&mut self, key: &str) -> anyhow::Result<bool> {
        let request = KeepAliveRequest { worker_key: key.to_owned(), api_key_id: String::new() };
        let answer = self.pool.keep_alive(self.request(request)).await.map_err(failure)?;
        Ok(answer.into_inner().status() == KeepAliveStatus::TtlExtended)
    }

    /// Keeps all of `keys` alive, in batches on one stream of session control, and returns how many
    /// are gone.
    ///
    /// # Errors
    ///
    /// The stream broke.
    pub(crate) async fn keep_all_alive(&mut self, keys: Vec<String>) -> anyhow::Result<usize> {
        let batches = keys.len().div_ceil(KEYS);
        let (sender, receiver) = mpsc::channel(BATCHES);
        let sent = tokio::spawn(async move {
            for (number, keys) in keys.chunks(KEYS).enumerate() {
                let batch = AttachRequest { batch: number as u64, worker_keys: keys.to_vec() };
                if sender.send(batch).await.is_err() {
                    return;
                }
            }
            // The stream stays open until the last answer has arrived.
            sender.closed().await;
        });
        let request = self.request(ReceiverStream::new(receiver));
        let mut answers = self.control.attach(request).await.map_err(failure)?.into_inner();
        let mut gone = 0;
        for _ in 0..batches {
            let answer = answers.message().await.map_err(failure)?.context("the stream ended")?;
            match answer.event {
                Some(Event::Answer(answer)) => gone += answer.failed.len(),
                other => bail!("a batch was answered {other:?}"),
            }
        }
        drop(answers);
        sent.abort();
        Ok(gone)
    }

    /// Returns a lease.
    ///
    /// # Errors
    ///
    /// The call failed, or the lease was not there.
    pub(crate) async fn give_back(&mut self, key: &str) -> anyhow::Result<()> {
        let request =
            ReturnWorkerRequest { worker_key: key.to_owned(), minimal_worker_life_duration: None };
        let answer = self.pool.return_worker(self.request(request)).await.map_err(failure)?;
        let status = answer.into_inner().status();
        ensure!(status == ReturnStatus::Returned, "a return was answered {status:?}");
        Ok(())
    }

    /// Reports `events`, with an idempotency key if one is given. Returns whether any of their
    /// organizations has spent a budget.
    ///
    /// # Errors
    ///
    /// The call failed; the code is in the error.
    pub(crate) async fn report(
        &mut self,
        events: Vec<metering::Event>,
        key: Option<&str>,
    ) -> anyhow::Result<bool> {
        let mut request = self.request(ReportRequest { events });
        if let Some(key) = key {
            request.metadata_mut().insert("x-idempotency-key", key.parse()?);
        }
        Ok(self.usage.report(request).await.map_err(failure)?.into_inner().revoked)
    }
}

/// A failed call in one line.
fn failure(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        // The source says what broke.
        Code::Unknown | Code::Internal | Code::Unavailable => {
            let source = std::error::Error::source(&status);
            let source = source.map(|error| format!(" ({error})")).unwrap_or_default();
            anyhow::anyhow!("{:?}: {}{source}", status.code(), status.message())
        }
        code => anyhow::anyhow!("{code:?}: {}", status.message()),
    }
}

/// A borrow of a session.
pub(crate) fn borrow_request(
    service: &str,
    organization: &str,
    trace: &str,
) -> BorrowWorkerRequest {
    BorrowWorkerRequest {
        service: service.to_owned(),
        organization_id: organization.to_owned(),
        api_key_id: String::new(),
        trace_id: trace.to_owned(),
        max_worker_for_trace_id: 0,
    }
}

/// An event of usage.
pub(crate) fn usage_event(
    organization: &str,
    metrics: impl IntoIterator<Item = (String, f64)>,
) -> metering::Event {
    let metrics = metrics.into_iter().map(|(key, value)| Metric { key, value }).collect();
    let organization_id = organization.to_owned();
    metering::Event { organization_id, metrics, ..metering::Event::default() }
}
