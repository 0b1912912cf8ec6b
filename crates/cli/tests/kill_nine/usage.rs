//! Reporters that repeat a report until it is answered, and check in each answer how much was
//! counted.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use wire::metering::{Event, Metric};
use wire::payment::ReportRequest;
use wire::payment::usage_service_client::UsageServiceClient;

use crate::clients::NoAnswer;

/// An answer says how much was used only if the budget is spent. So the budget is one block, which
/// the first report spends.
pub(crate) const POLICY: &str = r#"
[services.t1r]
[plans.metered]
budgets = { blocks = { amount = 1.0, per = "month" } }
"#;

/// The only reporter of its organization.
#[derive(Debug)]
pub(crate) struct Reporter {
    organization: String,
    /// How many of its reports were answered. Each counts one block.
    answered: u64,
}

impl Reporter {
    pub(crate) fn new(number: usize) -> Self {
        Self { organization: format!("reporter-{number}"), answered: 0 }
    }

    /// The line of the policy that gives its organization a budget.
    pub(crate) fn plan(&self) -> String {
        format!("[organizations.{}]\nplan = \"metered\"\n", self.organization)
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    /// Reports until the server is gone. The first report may be one that an earlier server did not
    /// answer.
    pub(crate) async fn work(mut self, address: String) -> Self {
        let mut client = client(&address);
        if let Ok(used) = self.used(&mut client).await {
            let unanswered = used - self.answered;
            assert!(unanswered <= 1, "{used} counted of {self:?}");
        }
        while let Ok(used) = self.report(&mut client).await {
            self.answered += 1;
            assert_eq!(used, self.answered, "{self:?}");
        }
        self
    }

    /// Sends the next report, and returns how much is counted with it.
    async fn report(&self, client: &mut UsageServiceClient<Channel>) -> Result<u64, NoAnswer> {
        let block = Metric { key: "blocks".to_owned(), value: 1.0 };
        self.send(client, Some(&self.name()), vec![block]).await
    }

    /// The idempotency key of the next report. It contains the organization, because all callers
    /// without an API key share their idempotency keys.
    fn name(&self) -> String {
        format!("{}/{}", self.organization, self.answered)
    }

    /// Returns how much was counted so far.
    pub(crate) async fn used(
        &self,
        client: &mut UsageServiceClient<Channel>,
    ) -> Result<u64, NoAnswer> {
        self.send(client, None, vec![]).await
    }

    async fn send(
        &self,
        client: &mut UsageServiceClient<Channel>,
        name: Option<&str>,
        metrics: Vec<Metric>,
    ) -> Result<u64, NoAnswer> {
        let organization_id = self.organization.clone();
        let event = Event { organization_id, metrics, ..Event::default() };
        let mut request = Request::new(ReportRequest { events: vec![event] });
        if let Some(name) = name {
            request.metadata_mut().insert("x-idempotency-key", name.parse().unwrap());
        }
        match client.report(request).await {
            Ok(response) => Ok(used_in(&response.into_inner().revocation_reason)),
            Err(status) => match status.code() {
                Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => {
                    Err(NoAnswer)
                }
                _ => panic!("a server under load answers {status}"),
            },
        }
    }
}

pub(crate) fn client(address: &str) -> UsageServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    UsageServiceClient::new(endpoint.timeout(Duration::from_secs(20)).connect_lazy())
}

/// Reads the 12 in "… spent: blocks 12 of 1 per month, …".
fn used_in(reason: &str) -> u64 {
    let Some((_, used)) = reason.split_once("blocks ") else { return 0 };
    used.split_once(" of ").unwrap().0.parse().unwrap()
}
