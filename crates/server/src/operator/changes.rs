//! Overrides and revocations.

use std::sync::Arc;

use lease::{Kind, LeaseNumber, Reason};
use policy::Source;
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};
use store::{AuditNote, Enforced, RecordError};

use super::outcome::Done;
use super::{
    By, InForceOverrides, MAX_LIMIT, MAX_NOTE, Operator, OperatorError, OperatorEvent, words,
};
use crate::blocking::blocking;

/// Who makes a change and why, for the audit list.
pub(super) struct Attribution {
    pub(super) from: Box<str>,
    pub(super) note: Box<str>,
}

impl TryFrom<By<'_>> for Attribution {
    type Error = OperatorError;

    fn try_from(by: By<'_>) -> Result<Self, OperatorError> {
        if by.note.chars().count() > MAX_NOTE {
            let problem = format!("the note is longer than {MAX_NOTE} characters");
            return Err(OperatorError::Invalid(problem));
        }
        Ok(Self { from: by.from.into(), note: by.note.into() })
    }
}

/// Overrides, which win over the policy file until they are cleared, and revocations.
impl Operator {
    /// Disables or enables an organization or an API key, whatever the file says. `None` clears the
    /// override: the file decides again.
    ///
    /// Disabling ends its leases at once. Durable when it returns. Cancellation: the change is
    /// still made.
    ///
    /// # Errors
    ///
    /// [`OperatorError::NotFound`] when there is nothing to clear, [`OperatorError::Invalid`] for an
    /// id that is empty or over 256 bytes, [`OperatorError::Conflict`] when there are as many
    /// overrides as there may be. After [`OperatorError::Unavailable`] the change may have been made,
    /// and leases that it does not allow may still live: the same change once more ends them.
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

    /// Sets the limit of an organization or an API key on a service entry, whatever the file says.
    /// `None` clears the override: the file decides again.
    ///
    /// The limit applies to the next borrow and ends no lease. Durable when it returns. Cancellation:
    /// the change is still made.
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
    /// Durable when it returns. Cancellation: the lease still ends.
    ///
    /// # Errors
    ///
    /// [`OperatorError::NotFound`] when there is no such lease.
    pub async fn revoke(
        self: &Arc<Self>,
        number: LeaseNumber,
        by: By<'_>,
    ) -> Result<Done, OperatorError> {
        let attribution = Attribution::try_from(by)?;
        let operator = self.clone();
        self.run_change(async move {
            let gone = || OperatorError::NotFound(format!("there is no lease {number}"));
            let lease = operator.store.find(number).await?.ok_or_else(gone)?;
            let kind = match lease.kind {
                Kind::Session => "session",
                Kind::Worker => "worker",
            };
            let organization = words::quoted(&lease.organization);
            let service = words::quoted(&lease.service);
            let action =
                format!("ended {kind} {number} of organization {organization} on {service}");
            let entry = operator.new_entry(attribution, action);
            // The lease may have ended meanwhile. Then no audit entry is written.
            let ended = operator.store.revoke_number(number, Reason::Operator, entry).await?;
            ended.map(|entry| operator.publish(entry)).ok_or_else(gone)
        })
        .await
    }

    async fn set(
        self: &Arc<Self>,
        key: OverrideKey,
        value: Option<u64>,
        by: By<'_>,
    ) -> Result<Done, OperatorError> {
        let attribution = Attribution::try_from(by)?;
        let operator = self.clone();
        self.run_change(async move {
            let (subject, id, is_switch) = (key.subject, key.id.clone(), key.service.is_none());
            let (mut entry, recorded, overrides) = {
                let in_force = operator.in_force.lock().await;
                let action = operator.describe(&in_force, &key, value).await?;
                let entry = operator.new_entry(attribution, action);
                let (set_at, note) = (entry.at, entry.note.clone());
                let value = value.map(|value| Override { value, set_at, note });
                let change = Some(OverrideChange { key, value });
                let recorded = operator.store.record(change, entry.clone());
                (entry, recorded, operator.store.overrides())
            };
            // No lock is held during the wait for the disk.
            entry.number = recorded.await?;
            let enforced = {
                let mut in_force = operator.in_force.lock().await;
                in_force.set_durable(entry.number, overrides);
                let (overrides, live) = (in_force.overrides.clone(), operator.live.load_full());
                let policy = blocking(move || live.policy.with_overrides(&overrides)).await;
                let live = operator.put_into_force(policy).await;
                operator.update_status(|status| status);
                let disables = is_switch && live.policy.disabled_by(subject, &id).0;
                disables.then(|| {
                    operator.store.enforce(&live.policy, AuditNote::Existing(entry.number))
                })
            };
            let enforced = match enforced {
                Some(enforced) => enforced.await,
                None => Ok(Enforced::default()),
            };
            let done = operator.publish(operator.audit_entry(entry.number).unwrap_or(entry));
            enforced?;
            Ok(done)
        })
        .await
    }

    /// Describes the change for the audit list, or returns why it is not possible.
    async fn describe(
        &self,
        in_force: &InForceOverrides,
        key: &OverrideKey,
        value: Option<u64>,
    ) -> Result<String, OperatorError> {
        let overrides = self.store.overrides();
        let set = overrides.get(key).map(|set| set.value);
        let whom = words::subject_of(key);
        let Some(service) = key.service.as_deref() else {
            if value.is_none() && set.is_none() {
                let problem = format!("no operator has disabled or enabled {whom}");
                return Err(OperatorError::NotFound(problem));
            }
            let switch = |value: Option<u64>| value.map(|value| value != 0);
            return Ok(words::describe_switch(key, switch(value), switch(set)));
        };
        let mut policy = self.live.load().policy.clone();
        if !Arc::ptr_eq(&overrides, &in_force.overrides) {
            // Overrides that wait for the disk come before this one.
            let with_overrides = move || Arc::new(policy.with_overrides(&overrides));
            policy = blocking(with_overrides).await;
        }
        match (value, set) {
            (None, None) => Err(OperatorError::NotFound(format!(
                "no operator has set a limit of {whom} on {}",
                words::quoted(service)
            ))),
            // An override without an entry in the policy can be cleared too.
            (None, set) => Ok(words::describe_limit(key, None, (set, Source::Override))),
            (Some(_), _) if !policy.has_entry(service) => {
                let known: Vec<_> = policy.services().collect();
                Err(OperatorError::NotFound(format!(
                    "the policy has no service {}; the services are: {}",
                    words::quoted(service),
                    known.join(", ")
                )))
            }
            (Some(_), _) => {
                let was = policy.limit_of(key.subject, &key.id, service);
                Ok(words::describe_limit(key, value, was))
            }
        }
    }

    pub(super) fn new_entry(&self, attribution: Attribution, action: String) -> AuditEntry {
        let Attribution { from, note } = attribution;
        AuditEntry { number: 0, at: self.now(), from, action: action.into(), note, ended: 0 }
    }

    /// The audit entry with this number, with its current count of leases.
    pub(super) fn audit_entry(&self, number: u64) -> Option<AuditEntry> {
        let entries = self.store.audit(number.checked_add(1), 1);
        entries.into_iter().find(|entry| entry.number == number)
    }

    /// Logs a change, and publishes it to the subscribers.
    pub(super) fn publish(&self, entry: AuditEntry) -> Done {
        let AuditEntry { ended, from, action, .. } = &entry;
        tracing::info!(%from, ended, "{action}");
        let done = Done { ended: *ended, summary: action.to_string() };
        // An error means that there are no subscribers.
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
