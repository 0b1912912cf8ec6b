//! Overrides and revocations.

use std::sync::Arc;

use lease::{Kind, LeaseNumber, Reason};
use policy::Source;
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};
use store::{Enforced, Noted, RecordError};

use super::outcome::Done;
use super::{
    By, InForceOverrides, MAX_LIMIT, MAX_NOTE, Operator, OperatorError, OperatorEvent, words,
};
use crate::blocking::blocking;

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
            // It may have ended by itself meanwhile: then nothing is written down either.
            let ended = operator.store.revoke_number(number, Reason::Operator, entry).await?;
            ended.map(|entry| operator.told(entry)).ok_or_else(gone)
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
            let (subject, id, is_switch) = (key.subject, key.id.clone(), key.service.is_none());
            let (mut entry, recorded, overrides) = {
                let in_force = operator.in_force.lock().await;
                let action = operator.in_words(&in_force, &key, value).await?;
                let entry = operator.entry(doing, action);
                let (set_at, note) = (entry.at, entry.note.clone());
                let value = value.map(|value| Override { value, set_at, note });
                let change = Some(OverrideChange { key, value });
                let recorded = operator.store.record(change, entry.clone());
                (entry, recorded, operator.store.overrides())
            };
            // Nothing is held while the disk is waited for.
            entry.number = recorded.await?;
            let enforced = {
                let mut in_force = operator.in_force.lock().await;
                in_force.are_durable(entry.number, overrides);
                let (overrides, live) = (in_force.overrides.clone(), operator.live.load_full());
                let policy = blocking(move || live.policy.with_overrides(&overrides)).await;
                let live = operator.put_into_force(policy).await;
                operator.tell(|status| status);
                let disables = is_switch && live.policy.is_disabled(subject, &id);
                disables.then(|| operator.store.enforce(&live.policy, Noted::At(entry.number)))
            };
            let enforced = match enforced {
                Some(enforced) => enforced.await,
                None => Ok(Enforced::default()),
            };
            let done = operator.told(operator.recorded(entry.number).unwrap_or(entry));
            enforced?;
            Ok(done)
        })
        .await
    }

    /// Says in words what is about to be set, if it can be.
    async fn in_words(
        &self,
        in_force: &InForceOverrides,
        key: &OverrideKey,
        value: Option<u64>,
    ) -> Result<String, OperatorError> {
        let overrides = self.store.overrides();
        let set = overrides.get(key).map(|set| set.value);
        let whom = words::whom(key);
        let Some(service) = key.service.as_deref() else {
            if value.is_none() && set.is_none() {
                let problem = format!("no operator has disabled or enabled {whom}");
                return Err(OperatorError::NotFound(problem));
            }
            let switch = |value: Option<u64>| value.map(|value| value != 0);
            return Ok(words::switched(key, switch(value), switch(set)));
        };
        let mut policy = self.live.load().policy.clone();
        if !Arc::ptr_eq(&overrides, &in_force.overrides) {
            // What waits for the disk was set before this.
            let laid_over = move || Arc::new(policy.with_overrides(&overrides));
            policy = blocking(laid_over).await;
        }
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

    /// The entry of that number, as it is now.
    pub(super) fn recorded(&self, number: u64) -> Option<AuditEntry> {
        let entries = self.store.audit(number.checked_add(1), 1);
        entries.into_iter().find(|entry| entry.number == number)
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
