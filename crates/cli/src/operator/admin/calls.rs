//! The calls of the admin API.

use serde::Serialize;
use tgm_session_server::api;

use super::client::{Admin, Fault};

/// What an override is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// An organization.
    Organization,
    /// An API key, by its id.
    ApiKey,
}

impl Subject {
    /// The collection of the API.
    const fn collection(self) -> &'static str {
        match self {
            Self::Organization => "organizations",
            Self::ApiKey => "api-keys",
        }
    }
}

/// One organization or API key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'a> {
    /// Which of the two.
    pub(crate) subject: Subject,
    /// Its id.
    pub(crate) id: &'a str,
}

/// The note of a change, for the audit list.
#[derive(Debug, Serialize)]
struct NoteQuery<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'a str,
}

impl Admin {
    /// The overview of the server.
    pub(crate) fn overview(&self) -> Result<api::Overview, Fault> {
        self.get(&["overview"], &())
    }

    /// One page of organizations.
    pub(crate) fn organizations(
        &self,
        query: &api::OrganizationsQuery,
    ) -> Result<api::OrganizationPage, Fault> {
        self.get(&["organizations"], query)
    }

    /// One organization.
    pub(crate) fn organization(&self, id: &str) -> Result<api::Organization, Fault> {
        self.get(&["organizations", id], &())
    }

    /// One page of leases.
    pub(crate) fn sessions(&self, query: &api::SessionsQuery) -> Result<api::SessionPage, Fault> {
        self.get(&["sessions"], query)
    }

    /// Ends a lease, by its number.
    pub(crate) fn revoke(&self, lease: &str, note: &str) -> Result<api::Done, Fault> {
        self.delete(&["sessions", lease], &NoteQuery { note })
    }

    /// Disables or enables an organization or API key. This takes precedence over the policy file; `None`
    /// clears the override.
    pub(crate) fn set_disabled(
        &self,
        whom: Target<'_>,
        disabled: Option<bool>,
        note: &str,
    ) -> Result<api::Done, Fault> {
        let path = [whom.subject.collection(), whom.id, "disabled"];
        match disabled {
            Some(disabled) => {
                self.put(&path, &api::SetDisabled { disabled, note: note.to_owned() })
            }
            None => self.delete(&path, &NoteQuery { note }),
        }
    }

    /// Sets a limit. It takes precedence over the policy file; `None` clears the override.
    pub(crate) fn set_limit(
        &self,
        whom: Target<'_>,
        service: &str,
        max: Option<u64>,
        note: &str,
    ) -> Result<api::Done, Fault> {
        let path = [whom.subject.collection(), whom.id, "limits", service];
        match max {
            Some(max) => self.put(&path, &api::SetLimit { max, note: note.to_owned() }),
            None => self.delete(&path, &NoteQuery { note }),
        }
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Result<api::EffectivePolicy, Fault> {
        self.get(&["policy"], &())
    }

    /// Loads the policy file again.
    pub(crate) fn reload(&self) -> Result<api::Done, Fault> {
        self.post(&["policy", "reload"], &())
    }

    /// The servers that share the store.
    pub(crate) fn fleet(&self) -> Result<api::Fleet, Fault> {
        self.get(&["fleet"], &())
    }

    /// Makes the leader of the fleet hand over.
    pub(crate) fn step_down(&self, query: &api::StepDownQuery) -> Result<api::Done, Fault> {
        self.post(&["fleet", "step-down"], query)
    }

    /// The latest refused borrows.
    pub(crate) fn refusals(&self, query: &api::RefusalsQuery) -> Result<api::RefusalPage, Fault> {
        self.get(&["refusals"], query)
    }

    /// What operators did.
    pub(crate) fn audit(&self, query: &api::AuditQuery) -> Result<api::AuditPage, Fault> {
        self.get(&["audit"], query)
    }
}
