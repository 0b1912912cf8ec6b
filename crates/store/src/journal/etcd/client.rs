//! Calls to an etcd.

use std::sync::Arc;
use std::time::Duration;

use connect::{Connection, Connector, NotConnected, grpc};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, TE};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::Status;

use super::messages::compare::{CompareTarget, TargetUnion};
use super::messages::request_op::Request;
use super::messages::{
    AuthenticateRequest, AuthenticateResponse, Compare, DeleteRangeRequest, KeyValue, PutRequest,
    RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse, response_op::Response,
};
use super::settings::Settings;
use crate::error::Error;
use crate::journal::engine::Unanswered;
use crate::journal::keys::{KeyChange, end_of};

/// What can be done when etcd has reached its quota.
const FULL: &str = "etcd has reached its quota and refuses changes: compact and defragment it, or raise \
                    --quota-backend-bytes, and then disarm the alarm (etcdctl alarm disarm)";

/// Parts of error texts, and what can be done about it.
const HINTS: [(&str, &str); 2] = [
    ("user name is empty", "etcd wants a user: set ETCDCTL_USER and ETCDCTL_PASSWORD"),
    ("invalid user ID or password", "see ETCDCTL_USER and ETCDCTL_PASSWORD"),
];

/// What decides about TLS, for connections that fail.
const TLS: &str = "ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY say whether and how TLS is used";

/// The connection of a server to a cluster, with the runtime on which it lives. Calls block.
#[derive(Debug)]
pub(super) struct Client {
    settings: Settings,
    runtime: Runtime,
    open: Option<Open>,
}

/// A connection, and the token of its user. `Debug` does not show the token.
#[derive(Debug)]
struct Open {
    connection: Connection,
    token: Option<HeaderValue>,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|source| Error::System { action: "start a runtime", source })?;
        Ok(Self { settings, runtime, open: None })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The error of a store that cannot be used.
    pub(super) fn error(&self, problem: impl ToString) -> Error {
        Error::Database { url: self.settings.shown.clone(), problem: problem.to_string() }
    }

    /// The key of that name.
    pub(super) fn key(&self, name: &str) -> Vec<u8> {
        [&self.settings.prefix, name.as_bytes()].concat()
    }

    /// Carries out a transaction.
    pub(super) fn transact(
        &mut self,
        compare: Vec<Compare>,
        success: Vec<RequestOp>,
        failure: Vec<RequestOp>,
        within: Duration,
    ) -> Result<TxnResponse, Unanswered> {
        self.call("KV/Txn", &TxnRequest { compare, success, failure }, within)
    }

    /// Reads keys.
    pub(super) fn read(
        &mut self,
        keys: Vec<RequestOp>,
        within: Duration,
    ) -> Result<TxnResponse, Unanswered> {
        self.transact(vec![], keys, vec![], within)
    }

    /// Makes one call. After a failure the next one goes to another member, over a new connection.
    pub(super) fn call<A: Message + Default>(
        &mut self,
        method: &str,
        message: &impl Message,
        within: Duration,
    ) -> Result<A, Unanswered> {
        let Self { settings, runtime, open } = self;
        let outcome = runtime.block_on(async {
            let work = async {
                let open = match open {
                    Some(open) => open,
                    None => open.insert(Open::new(settings).await?),
                };
                open.call(&settings.uri(method), message).await
            };
            let late = || Unanswered::Failed(format!("etcd did not answer within {within:?}"));
            tokio::time::timeout(within, work).await.unwrap_or_else(|_| Err(late()))
        });
        if outcome.is_err() {
            *open = None;
            settings.hosts.rotate_left(1);
        }
        outcome
    }
}

impl Open {
    /// A connection to the first member that can be reached. It connects when it is used.
    async fn new(settings: &Settings) -> Result<Self, Unanswered> {
        let way = Arc::new(settings.way().map_err(Unanswered::Failed)?);
        let mut open = Self { connection: Connection::new(Connector::Way(way)), token: None };
        if let Some((name, password)) = settings.user.clone() {
            let message = AuthenticateRequest { name, password };
            let answer: AuthenticateResponse =
                open.call(&settings.uri("Auth/Authenticate"), &message).await?;
            let token = HeaderValue::try_from(answer.token);
            let mut token =
                token.map_err(|_| Unanswered::Failed("etcd's token is invalid".to_owned()))?;
            token.set_sensitive(true);
            open.token = Some(token);
        }
        Ok(open)
    }

    async fn call<A: Message + Default>(
        &self,
        uri: &str,
        message: &impl Message,
    ) -> Result<A, Unanswered> {
        let mut request = http::Request::post(uri)
            .header(TE, "trailers")
            .header(CONTENT_TYPE, "application/grpc")
            // A member of a cluster without a quorum answers at once.
            .header("hasleader", "true");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request.body(()).map_err(|error| Unanswered::Failed(error.to_string()))?;
        let answer = grpc::call(&self.connection, request, message).await;
        answer.map(tonic::Response::into_inner).map_err(|status| explain(&status))
    }
}

fn explain(status: &Status) -> Unanswered {
    let source = std::error::Error::source(status).and_then(|it| it.downcast_ref());
    let text = match source {
        Some(NotConnected::Failed(error)) => error.to_string(),
        _ => status.message().to_owned(),
    };
    if text.contains("space exceeded") {
        return Unanswered::Full(FULL.to_owned());
    }
    Unanswered::Failed(match HINTS.iter().find(|(part, _)| text.contains(part)) {
        Some((_, hint)) => format!("{text}: {hint}"),
        None if source.is_none() => text,
        None if text.contains("refused") => format!("etcd cannot be reached: {text}"),
        None => format!("etcd cannot be reached: {text}; {TLS}"),
    })
}

// ---- parts of a transaction ----

pub(super) fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(PutRequest { key, value })) }
}

pub(super) fn change(change: KeyChange) -> RequestOp {
    let (key, range_end) = match change {
        KeyChange::Put(key, value) => return put(key, value),
        KeyChange::Remove(key, end) => (key, end),
    };
    let request = DeleteRangeRequest { key, range_end };
    RequestOp { request: Some(Request::RequestDeleteRange(request)) }
}

/// Reads one key.
pub(super) fn get(key: Vec<u8>) -> RequestOp {
    let request = RangeRequest { key, ..RangeRequest::default() };
    RequestOp { request: Some(Request::RequestRange(request)) }
}

/// Reads every key that begins with `prefix`.
pub(super) fn get_all(prefix: Vec<u8>) -> RequestOp {
    let range_end = end_of(&prefix);
    let request = RangeRequest { key: prefix, range_end, ..RangeRequest::default() };
    RequestOp { request: Some(Request::RequestRange(request)) }
}

pub(super) fn nested(success: Vec<RequestOp>) -> RequestOp {
    let request = TxnRequest { success, ..TxnRequest::default() };
    RequestOp { request: Some(Request::RequestTxn(request)) }
}

/// Compares the value of a key.
pub(super) fn equals(key: Vec<u8>, value: Vec<u8>) -> Compare {
    let (target, target_union) = (CompareTarget::Value.into(), Some(TargetUnion::Value(value)));
    Compare { target, key, target_union, ..Compare::default() }
}

/// Checks that there is no such key.
pub(super) fn is_missing(key: Vec<u8>) -> Compare {
    let target_union = Some(TargetUnion::ModRevision(0));
    Compare { target: CompareTarget::Mod.into(), key, target_union, ..Compare::default() }
}

/// What the reading part number `at` of a transaction found.
pub(super) fn found(answer: &TxnResponse, at: usize) -> &[KeyValue] {
    match answer.responses.get(at) {
        Some(ResponseOp { response: Some(Response::ResponseRange(range)) }) => &range.kvs,
        _ => &[],
    }
}

/// The value of the key that the part number `at` read.
pub(super) fn value(answer: &TxnResponse, at: usize) -> Option<&[u8]> {
    found(answer, at).first().map(|row| &*row.value)
}
