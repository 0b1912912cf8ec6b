//! The entries of services, and limits by service.

use std::time::Duration;

use lease::Limits;

/// The id of one service entry of one policy file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub(crate) u32);

impl ServiceId {
    /// The position of the entry in [`Policy::services`](crate::Policy::services).
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One service entry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Service {
    /// The name of the entry.
    pub name: Box<str>,
    /// The limit of the whole service, and those of an organization and of an API key that have none
    /// of their own. `None` is no limit, and 0 admits nobody.
    pub limits: Limits,
    /// How long a lease lives without a keep-alive.
    pub ttl: Duration,
    /// The minimal life that clients are told.
    pub minimal_life: Duration,
    /// Whether limits and budgets are counted but refuse nobody.
    pub observe: bool,
}

/// Limits by service.
#[derive(Debug, Default)]
pub(crate) struct ServiceLimits(Box<[(ServiceId, u64)]>);

impl ServiceLimits {
    pub(crate) fn get(&self, service: ServiceId) -> Option<u64> {
        let at = self.0.binary_search_by_key(&service, |(id, _)| *id).ok()?;
        Some(self.0[at].1)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ServiceId, u64)> {
        self.0.iter().copied()
    }
}

/// Each service may occur once, in any order.
impl FromIterator<(ServiceId, u64)> for ServiceLimits {
    fn from_iter<I: IntoIterator<Item = (ServiceId, u64)>>(limits: I) -> Self {
        let mut limits: Box<[_]> = limits.into_iter().collect();
        limits.sort_unstable();
        Self(limits)
    }
}
