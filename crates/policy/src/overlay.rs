//! The overrides of operators, indexed like the entries of the file.

use crate::entries::{Entries, ServiceLimits, Table};
use crate::overrides::{Override, OverrideKey, Overrides, Subject};

/// The overrides over one set of entries.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) organizations: Table<Set>,
    pub(crate) api_keys: Table<Set>,
    pub(crate) overrides: usize,
}

/// The overrides of one organization or API key.
#[derive(Debug, Default)]
pub(crate) struct Set {
    pub(crate) limits: ServiceLimits,
    pub(crate) disabled: Option<bool>,
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
            let mut set = Set::default();
            let mut limits = Vec::with_capacity(about.len());
            for (key, set_to) in about {
                match &key.service {
                    None => set.disabled = Some(set_to.value != 0),
                    Some(name) => {
                        let service = entries.services_by_name.get(name);
                        limits.extend(service.map(|service| (*service, set_to.value)));
                    }
                }
            }
            set.limits = ServiceLimits::from_iter(limits);
            let (OverrideKey { subject, id, .. }, _) = about[0];
            let table = match subject {
                Subject::Organization => &mut overlay.organizations,
                Subject::ApiKey => &mut overlay.api_keys,
            };
            table.insert(id.clone(), set);
        }
        overlay
    }
}
