//! Overrides and revocations.

use std::sync::Arc;

use lease::{Kind, LeaseNumber, Reason};

use super::{By, Ends, MAX_LIMIT, MAX_NOTE, Operator, OperatorError, OperatorEvent, words};
use crate::admin::api::model::Done;
use crate::policy::Source;
use crate::policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};
use crate::repeated::Repeated;
use crate::serve::blocking;
use crate::store::{RecordError, Store as _};

static NOT_AMENDED: Repeated = Repeated::new();

/// Who does something and why, on its way into the audit list.
pub(super) struct Doing {
    pub(super) from: Box<str>,
    pub(super) note: Box<str>,
}

impl TryFrom<By<'_>> for Doing {
    type Error = OperatorError;

    fn try_from(by: By<'_>) -> Result<Self, OperatorError> {
        if by.note.chars().count() > MAX_NOTE {
            let problem = format!("the note is longer than {MAX_NOTE} characters");
            return Err(OperatorError::Invalid(problem));
        }
        Ok(Self { from: by.from.into(), note: by.note.into() })
    }
}

/// Changes that win over the policy file until they are cleared.
impl Operator {
    /// Disables an organization or an API key, or enables it, whatever the file says; `None` leaves
    /// that to the file again.
    ///
    /// Disabling ends its leases at once. Durable when it answers. Cancellation: the change is made
    /// all the same.
    ///
    /// # Errors
    ///
    /// [`OperatorError::NotFound`] when there is nothing to clear, [`OperatorError::Invalid`] for an
    /// id that is empty or over 256 bytes, [`OperatorError::Conflict`] when there are as many
    /// overrides as there may be. After [`OperatorError::Unavailable`] the change may have been made,
    /// and leases may live on that it does not allow: doing it again ends them.
    pub async fn set_disabled(
        self: &Arc<Self>,
        subject: Subject,
        id: &str,
        disabled: Option<bool>,
        by: By<'_>,
    ) -> Result<Done, OperatorError> {
        let key = OverrideKey { subject, id: valid_id(subject.as_str(), id)?, service: None };
        self.set(key, disabled.map(u64::from), by).await
    }

    /// Sets the ceiling of an organization, or of an API key, over a service entry, whatever the
    /// file says; `None` leaves that to the file again.
    ///
    /// It holds for the next borrow and ends nobody. Durable when it answers. Cancellation: the
    /// change is made all the same.
    ///
    /// # Errors
    ///
    /// As [`Operator::set_disabled`], and [`OperatorError::NotFound`] when the policy has no entry
    /// for the service.
    pub async fn set_limit(
        self: &Arc<Self>,
        subject: Subject,
        id: &str,
        service: &str,
        max: Option<u64>,
        by: By<'_>,
    ) -> Result<Done, OperatorError> {
        if max.is_some_and(|max| max > MAX_LIMIT) {
            return Err(OperatorError::Invalid(format!("the limit is above {MAX_LIMIT}")));
        }
        let service = Some(valid_id("service", service)?);
        let key = OverrideKey { subject, id: valid_id(subject.as_str(), id)?, service };
        self.set(key, max, by).await
    }

    /// Ends one lease at once, and with the last session of a trace its workers.
    ///
    /// Durable when it answers. Cancellation: the lease ends all the same.
    ///
    /// # Errors
    ///
    /// [`OperatorError::NotFound`] when there is no such lease.
    pub async fn revoke(
        self: &Arc<Self>,
        number: LeaseNumber,
        by: By<'_>,
    ) -> Result<Done, OperatorError> {
        let doing = Doing::try_from(by)?;
        let operator = self.clone();
        self.change(async move {
            let _changing = operator.changing.lock().await;
            let gone = || OperatorError::NotFound(format!("there is no lease {number}"));
            let lease = operator.store.find(number).await?.ok_or_else(gone)?;
            let kind = match lease.kind {
                Kind::Session => "session",
                Kind::Worker => "worker",
            };
            let organization = words::name(&lease.organization);
            let service = words::name(&lease.service);
            let action =
                format!("ended {kind} {number} of organization {organization} on {service}");
            let entry = operator.entry(doing, action);
            let entry = operator.record(None, entry).await?;
            let ended = operator.store.revoke_number(number, Reason::Operator).await?;
            let done = operator.amend(entry, ended).await;
            // It may have ended by itself meanwhile.
            if ended == 0 { Err(gone()) } else { Ok(done) }
        })
        .await
    }

    async fn set(
        self: &Arc<Self>,
        key: OverrideKey,
        value: Option<u64>,
        by: By<'_>,
    ) -> Result<Done, OperatorError> {
        let doing = Doing::try_from(by)?;
        let operator = self.clone();
        self.change(async move {
            let _changing = operator.changing.lock().await;
            let action = operator.in_words(&key, value)?;
            let entry = operator.entry(doing, action);
            let (set_at, note) = (entry.at, entry.note.clone());
            let value = value.map(|value| Override { value, set_at, note });
            let (subject, id) = (key.subject, key.id.clone());
            let is_switch = key.service.is_none();
            let entry = operator.record(Some(OverrideChange { key, value }), entry).await?;
            let (overrides, live) = (operator.store.overrides(), operator.live.load_full());
            let policy = blocking(move || live.policy.with_overrides(&overrides)).await;
            let disables = is_switch && policy.is_disabled(subject, &id);
            let ends = if disables { Ends::WhomItDoesNotAllow } else { Ends::Nobody };
            let ended = operator.put_into_force(policy, ends).await;
            operator.tell(|status| status);
            let done = operator.amend(entry, *ended.as_ref().unwrap_or(&0)).await;
            ended?;
            Ok(done)
        })
        .await
    }

    /// Says in words what is about to be set, if it can be.
    fn in_words(&self, key: &OverrideKey, value: Option<u64>) -> Result<String, OperatorError> {
        let set = self.store.overrides().get(key).map(|set| set.value);
        let whom = words::whom(key);
        let Some(service) = key.service.as_deref() else {
            if value.is_none() && set.is_none() {
                let problem = format!("no operator has disabled or enabled {whom}");
                return Err(OperatorError::NotFound(problem));
            }
            let switch = |value: Option<u64>| value.map(|value| value != 0);
            return Ok(words::switched(key, switch(value), switch(set)));
        };
        let policy = self.policy();
        match (value, set) {
            (None, None) => Err(OperatorError::NotFound(format!(
                "no operator has set a limit of {whom} on {}",
                words::name(service)
            ))),
            // What the policy has no entry for is cleared all the same.
            (None, set) => Ok(words::limited(key, None, (set, Source::Override))),
            (Some(_), _) if !policy.has_entry(service) => {
                let known: Vec<_> = policy.services().collect();
                Err(OperatorError::NotFound(format!(
                    "the policy has no service {}; the services are: {}",
                    words::name(service),
                    known.join(", ")
                )))
            }
            (Some(_), _) => {
                let was = policy.ceiling_of(key.subject, &key.id, service);
                Ok(words::limited(key, value, was))
            }
        }
    }

    pub(super) fn entry(&self, doing: Doing, action: String) -> AuditEntry {
        let Doing { from, note } = doing;
        AuditEntry { number: 0, at: self.now(), from, action: action.into(), note, ended: 0 }
    }

    /// Writes down what is about to be done, with the override it changes.
    async fn record(
        &self,
        change: Option<OverrideChange>,
        entry: AuditEntry,
    ) -> Result<AuditEntry, OperatorError> {
        let number = self.store.record(change, entry.clone()).await?;
        Ok(AuditEntry { number, ..entry })
    }

    /// Writes down and tells what came of it.
    async fn amend(&self, entry: AuditEntry, ended: usize) -> Done {
        let entry = AuditEntry { ended: ended as u64, ..entry };
        if ended > 0
            && let Err(error) = self.store.amend(entry.number, entry.ended).await
        {
            // It is done, and its entry is there.
            let number = entry.number;
            if let Some(times) = NOT_AMENDED.count() {
                let problem = "an audit entry lacks how many leases ended";
                tracing::warn!(%error, number, ended, times, "{problem}");
            }
        }
        self.told(entry)
    }

    /// Tells what was done.
    pub(super) fn told(&self, entry: AuditEntry) -> Done {
        let AuditEntry { ended, from, action, .. } = &entry;
        tracing::info!(%from, ended, "{action}");
        let done = Done { ended: *ended, summary: action.to_string() };
        // Nobody may listen.
        let _ = self.events.send(OperatorEvent::Audit(entry));
        done
    }
}

impl From<RecordError> for OperatorError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Full { .. } => Self::Conflict(error.to_string()),
            RecordError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

fn valid_id(field: &'static str, id: &str) -> Result<Box<str>, OperatorError> {
    lease::validate_id(field, id, true)
        .map(|()| id.into())
        .map_err(|invalid| OperatorError::Invalid(invalid.to_string()))
}
