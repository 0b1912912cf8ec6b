//! The precedence of overrides and entries: which of them sets a number, and so its source.
//!
//! Decisions and explanations use the same functions, so a number and its source always agree.

use crate::entries::{Entries, Plan, SubjectEntry, Subjects};
use crate::overrides::{Override, OverrideKey, Overrides, Subject};
use crate::services::{ServiceId, ServiceLimits};
use crate::source::Source;

/// The overrides and the entry of one organization or API key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SubjectPolicy<'p> {
    pub(crate) entries: &'p Entries,
    pub(crate) subject: Subject,
    pub(crate) overrides: Option<&'p SubjectEntry>,
    pub(crate) own: Option<&'p SubjectEntry>,
}

impl<'p> SubjectPolicy<'p> {
    pub(crate) fn is_disabled(&self) -> (bool, Source) {
        if let Some(disabled) = self.overrides.and_then(|set| set.disabled) {
            return (disabled, Source::Override);
        }
        let disabled = self.own.and_then(|own| own.disabled);
        disabled.map_or((false, Source::Nothing), |disabled| (disabled, Source::Own))
    }

    pub(crate) fn plan(&self) -> Option<&'p Plan> {
        self.own.and_then(|own| own.plan).map(|plan| &self.entries.plans[plan])
    }

    pub(crate) fn limit(&self, service: ServiceId) -> (Option<u64>, Source) {
        if let Some(max) = self.overrides.and_then(|set| set.limits.get(service)) {
            return (Some(max), Source::Override);
        }
        if let Some(max) = self.own.and_then(|own| own.limits.get(service)) {
            return (Some(max), Source::Own);
        }
        if let Some(max) = self.plan().and_then(|plan| plan.limits.get(service)) {
            return (Some(max), Source::Plan);
        }
        let limits = &self.entries.services[service.index()].limits;
        let max = match self.subject {
            Subject::Organization => limits.organization,
            Subject::ApiKey => limits.api_key,
        };
        let source = match max {
            None => Source::Nothing,
            Some(_) if self.entries.default_service == Some(service) => Source::Default,
            Some(_) => Source::Service,
        };
        (max, source)
    }
}

/// The overrides of operators over one set of entries, indexed like the entries.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) subjects: Subjects,
    pub(crate) overrides: usize,
}

impl Overlay {
    /// Indexes `overrides` for `entries`. A limit for a service without an entry has no effect until
    /// the file has this entry again.
    pub(crate) fn new(overrides: &Overrides, entries: &Entries) -> Self {
        let mut overlay = Self { overrides: overrides.len(), ..Self::default() };
        let overrides: Vec<(&OverrideKey, &Override)> = overrides.iter().collect();
        // They are sorted by subject and id.
        for about in overrides
            .chunk_by(|(one, _), (next, _)| (one.subject, &one.id) == (next.subject, &next.id))
        {
            let (mut disabled, mut limits) = (None, Vec::with_capacity(about.len()));
            for (key, set_to) in about {
                match &key.service {
                    None => disabled = Some(set_to.value != 0),
                    Some(name) => {
                        let service = entries.services_by_name.get(name);
                        limits.extend(service.map(|service| (*service, set_to.value)));
                    }
                }
            }
            let limits = ServiceLimits::from_iter(limits);
            let (OverrideKey { subject, id, .. }, _) = about[0];
            let set = SubjectEntry { plan: None, limits, disabled };
            overlay.subjects.of_mut(*subject).insert(id.clone(), set);
        }
        overlay
    }
}
