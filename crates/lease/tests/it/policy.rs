//! A minimal policy for tests.

use std::collections::HashMap;

use lease::{Budget, Policy};

/// A policy that consists of lists of names, and of budgets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plain {
    pub(crate) disabled: Vec<&'static str>,
    pub(crate) disabled_keys: Vec<&'static str>,
    pub(crate) budgets: HashMap<&'static str, Vec<Budget>>,
    pub(crate) observed: Vec<&'static str>,
}

impl Policy for Plain {
    fn knows(&self, organization: &str) -> bool {
        self.budgets.contains_key(organization)
    }

    fn budgets(&self, organization: &str) -> &[Budget] {
        self.budgets.get(organization).map_or(&[], Vec::as_slice)
    }

    fn is_organization_disabled(&self, organization: &str) -> bool {
        self.disabled.contains(&organization)
    }

    fn is_api_key_disabled(&self, api_key: &str) -> bool {
        self.disabled_keys.contains(&api_key)
    }

    fn observes(&self, service: &str) -> bool {
        self.observed.contains(&service)
    }
}
