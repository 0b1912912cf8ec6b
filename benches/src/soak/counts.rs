//! What the server counts, asked over a direct connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tonic::transport::{Channel, Endpoint};
use wire::worker::worker_pool_client::WorkerPoolClient;
use wire::worker::{WorkersState, WorkersStateRequest};

use crate::hosts::ORGANIZATIONS;

/// The services and their limits per organization.
pub(crate) const SERVICES: [(&str, u64); 2] = [("t1r", 16), ("t2w", 50)];

/// The time to live of every lease.
pub(crate) const TTL: Duration = Duration::from_secs(12);

/// Limits that are reached all the time, and a minimal life that some sessions do not reach.
pub(crate) fn policy() -> String {
    let service = |(name, limit): (&str, u64)| {
        format!(
            "[services.{name}]\nmax_per_organization = {limit}\nttl = \"{}s\"\n\
             minimal_life = \"500ms\"\n",
            TTL.as_secs()
        )
    };
    SERVICES.map(service).concat()
}

/// A direct connection to the server.
#[derive(Clone, Debug)]
pub(crate) struct Counts(WorkerPoolClient<Channel>);

impl Counts {
    /// Connects to the server at `address`.
    ///
    /// # Errors
    ///
    /// The address cannot be used.
    pub(crate) fn of(address: SocketAddr) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let channel = endpoint.timeout(Duration::from_secs(10)).connect_lazy();
        Ok(Self(WorkerPoolClient::new(channel)))
    }

    /// How many leases of each trace the server counts, all pools together.
    ///
    /// # Errors
    ///
    /// The server does not answer, or counts more than a limit allows.
    pub(crate) async fn by_trace(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut traces = BTreeMap::new();
        for organization in ORGANIZATIONS {
            for (service, limit) in SERVICES {
                let state = self.state(service, organization).await?;
                let counted = u64::try_from(state.borrowed_workers)?;
                ensure!(
                    counted <= limit,
                    "{organization} holds {counted} of {service}, and {limit} are allowed"
                );
                for (trace, leases) in state.worker_count_per_trace_id {
                    *traces.entry(trace).or_default() += u64::try_from(leases)?;
                }
            }
        }
        Ok(traces)
    }

    async fn state(&self, service: &str, organization: &str) -> anyhow::Result<WorkersState> {
        let request = WorkersStateRequest {
            service: service.to_owned(),
            organization_id: organization.to_owned(),
            api_key_id: String::new(),
        };
        let answer = self.0.clone().workers_state(request).await.context("the server is asked")?;
        answer.into_inner().worker_state.context("the server answers without a state")
    }
}
