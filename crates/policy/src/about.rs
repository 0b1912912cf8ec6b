//! The precedence of overrides and entries: which of them sets a number, and so its source.
//!
//! Decisions and explanations use the same functions, so a number and its source always agree.

use crate::entries::{ApiKey, Entries, Organization, Plan};
use crate::overlay::Set;
use crate::service_id::ServiceId;
use crate::source::Source;

/// The overrides and the entry of one organization or API key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'p, E> {
    pub(crate) entries: &'p Entries,
    pub(crate) set: Option<&'p Set>,
    pub(crate) own: Option<&'p E>,
}

impl<'p> About<'p, Organization> {
    pub(crate) fn is_disabled(&self) -> (bool, Source) {
        disabled_by(self.set, self.own.is_some_and(|own| own.disabled))
    }

    pub(crate) fn plan(&self) -> Option<&'p Plan> {
        self.own.and_then(|own| own.plan).map(|plan| &self.entries.plans[plan])
    }

    pub(crate) fn ceiling(&self, service: ServiceId) -> (Option<u64>, Source) {
        if let Some(max) = self.set.and_then(|set| set.limits.get(service)) {
            return (Some(max), Source::Override);
        }
        if let Some(max) = self.own.and_then(|own| own.limits.get(service)) {
            return (Some(max), Source::Own);
        }
        if let Some(max) = self.plan().and_then(|plan| plan.limits.get(service)) {
            return (Some(max), Source::Plan);
        }
        of_service(
            self.entries,
            service,
            self.entries.services[service.index()].limits.organization,
        )
    }
}

impl About<'_, ApiKey> {
    pub(crate) fn is_disabled(&self) -> (bool, Source) {
        disabled_by(self.set, self.own.is_some_and(|own| own.disabled))
    }

    pub(crate) fn ceiling(&self, service: ServiceId) -> (Option<u64>, Source) {
        if let Some(max) = self.set.and_then(|set| set.limits.get(service)) {
            return (Some(max), Source::Override);
        }
        if let Some(max) = self.own.and_then(|own| own.limits.get(service)) {
            return (Some(max), Source::Own);
        }
        of_service(self.entries, service, self.entries.services[service.index()].limits.api_key)
    }
}

fn disabled_by(set: Option<&Set>, own: bool) -> (bool, Source) {
    match set.and_then(|set| set.disabled) {
        Some(disabled) => (disabled, Source::Override),
        None => (own, if own { Source::Own } else { Source::Nothing }),
    }
}

/// A limit of the entry of a service, and its source.
fn of_service(entries: &Entries, service: ServiceId, max: Option<u64>) -> (Option<u64>, Source) {
    let source = match max {
        None => Source::Nothing,
        Some(_) if entries.default_service == Some(service) => Source::Default,
        Some(_) => Source::Service,
    };
    (max, source)
}
