//! The policy: it identifies callers and decides the terms of borrows.
//!
//! A policy is read from a TOML file, checked, and never changed after that. A changed file makes a
//! new policy, and so do changed overrides. Looking up the terms of a request allocates nothing.

use std::sync::Arc;

use lease::{Budget, Limits, Reason, Request, Terms, UnnamedServices, WallTime};

use crate::entries::Entries;
use crate::indexers::{Indexer, Unauthenticated};
use crate::overrides::{Overrides, Subject};
use crate::precedence::{Overlay, SubjectPolicy};
use crate::services::ServiceId;

/// The name of the entry for all services without an entry of their own.
pub const DEFAULT_SERVICE: &str = "default";

/// The decisions of the operator: services, plans, organizations, API keys and indexers.
///
/// ```
/// use lease::{Request, WallTime};
/// use policy::Policy;
///
/// let file = r#"
///     [services.t1r]
///     max_per_organization = 10
///     [plans.pro]
///     limits = { t1r = 30 }
///     [organizations.acme]
///     plan = "pro"
/// "#;
/// let policy = Policy::parse(file, "policy.toml").expect("a valid policy").policy;
///
/// let ruling = policy.terms(None, &Request::session("t1r", "acme"), WallTime::default).expect("terms");
/// assert_eq!(ruling.terms.limits.organization, Some(30));
/// let refused = policy.terms(None, &Request::session("t9", "acme"), WallTime::default).unwrap_err();
/// assert_eq!(refused.to_string(), "the policy knows no service \"t9\" and no default");
/// ```
///
/// Clones are cheap: they share all data.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The entries of the file. Policies that differ only in their overrides share them.
    pub(crate) entries: Arc<Entries>,
    pub(crate) overlay: Arc<Overlay>,
    /// The policies that a server puts into force have rising numbers.
    number: u64,
}

/// The decision of the policy about one borrow.
#[derive(Clone, Copy, Debug)]
pub struct Ruling<'p> {
    /// The entry that applies to the service.
    pub service: ServiceId,
    /// The terms.
    pub terms: Terms<'p>,
}

/// Why the policy refuses a request, whatever is in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The policy has neither an entry for the service nor a default.
    #[error("the policy knows no service {0:?} and no default")]
    UnknownService(Box<str>),
    /// The indexer may not use the service.
    #[error("indexer {indexer:?} may not use service {service:?}")]
    ServiceNotAllowed {
        /// The indexer that asked.
        indexer: Box<str>,
        /// The service it asked for.
        service: Box<str>,
    },
    /// The organization or the API key is disabled.
    #[error("{0}")]
    Disabled(Reason),
}

impl Policy {
    /// Whether this is [`Policy::built_in`], with any overrides.
    pub fn is_built_in(&self) -> bool {
        self.entries.is_built_in
    }

    /// The same policy with other overrides, which take precedence over the file.
    ///
    /// It shares the entries of the file, so its cost depends on the number of overrides only. The
    /// subject of an override may have no entry in the file.
    pub fn with_overrides(&self, overrides: &Overrides) -> Self {
        let overlay = Arc::new(Overlay::new(overrides, &self.entries));
        Self { overlay, ..self.clone() }
    }

    /// The same policy with another number.
    #[must_use]
    pub fn numbered(self, number: u64) -> Self {
        Self { number, ..self }
    }

    /// Its number. A policy that comes into force later has a higher number.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// The terms of `request` by `caller`; `wall` is called only where budgets need the time.
    ///
    /// The limit of an organization comes from an override, else from its own entry, else from its
    /// plan, else from the service. The limit of an API key comes from an override, else from its
    /// own entry, else from the service.
    ///
    /// # Errors
    ///
    /// [`Refused`], checked in the order of the contract: unknown service, a service the indexer may not
    /// use, a disabled organization, a disabled API key.
    pub fn terms(
        &self,
        caller: Option<&Indexer>,
        request: &Request<'_>,
        wall: impl FnOnce() -> WallTime,
    ) -> Result<Ruling<'_>, Refused> {
        let id = self.allowed_service(caller, request.service)?;
        let organization = self.about(Subject::Organization, request.organization);
        let api_key = self.about(Subject::ApiKey, request.api_key);
        let disabled = Reason::of_disabled(organization.is_disabled().0, api_key.is_disabled().0);
        if let Some(reason) = disabled {
            return Err(Refused::Disabled(reason));
        }
        let service = &self.entries.services[id.index()];
        let budgets = organization.plan().map_or(&[][..], |plan| &plan.budgets);
        let terms = Terms {
            limits: Limits {
                service: service.limits.service,
                organization: organization.limit(id).0,
                api_key: api_key.limit(id).0,
            },
            ttl: service.ttl,
            minimal_life: service.minimal_life,
            observe: service.observe,
            budgets,
            wall: if budgets.is_empty() { WallTime::default() } else { wall() },
            unnamed: (Some(id) == self.entries.default_service)
                .then(|| self.unnamed(request.service))
                .flatten(),
            policy: self.number,
        };
        Ok(Ruling { service: id, terms })
    }

    /// The limit of the pool of `organization` in `service`, also of a disabled organization.
    ///
    /// # Errors
    ///
    /// [`Refused`] for an unknown service, or a service that `caller` may not use.
    pub fn pool_limit(
        &self,
        caller: Option<&Indexer>,
        service: &str,
        organization: &str,
    ) -> Result<Option<u64>, Refused> {
        let id = self.allowed_service(caller, service)?;
        Ok(self.about(Subject::Organization, organization).limit(id).0)
    }

    /// The reason to end leases of `organization` and `api_key`, if one of them is disabled.
    pub fn disabled(&self, organization: &str, api_key: &str) -> Option<Reason> {
        let is_disabled = |subject, id| self.disabled_by(subject, id).0;
        Reason::of_disabled(
            is_disabled(Subject::Organization, organization),
            is_disabled(Subject::ApiKey, api_key),
        )
    }

    /// The usage budgets of `organization`.
    pub fn organization_budgets(&self, organization: &str) -> &[Budget] {
        self.about(Subject::Organization, organization).plan().map_or(&[], |plan| &plan.budgets)
    }

    /// The names of the service entries, including `default`, in the order of their ids.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.services.iter().map(|service| &*service.name)
    }

    /// The entry that applies to the service `name`.
    pub fn service(&self, name: &str) -> Option<ServiceId> {
        self.entries.services_by_name.get(name).copied().or(self.entries.default_service)
    }

    /// Whether indexers are configured, so that every call needs a key.
    pub fn has_indexers(&self) -> bool {
        !self.entries.indexers.is_empty()
    }

    /// The indexer with the key `key`; `None` while no indexers are configured.
    ///
    /// The policy has only the SHA-256 of each key, and compares it in constant time.
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`] when indexers are configured and `key` is missing or unknown.
    pub fn identify(&self, key: Option<&[u8]>) -> Result<Option<&Indexer>, Unauthenticated> {
        self.entries.indexers.identify(key)
    }

    /// The bound for services without an entry, which applies to `service`.
    fn unnamed(&self, service: &str) -> Option<UnnamedServices<'_>> {
        let max = self.entries.max_unnamed_services;
        // A service may itself have the name of the default entry.
        (service != DEFAULT_SERVICE).then_some(UnnamedServices { max, policy: self })
    }

    pub(crate) fn about<'p>(&'p self, subject: Subject, id: &str) -> SubjectPolicy<'p> {
        SubjectPolicy {
            entries: &self.entries,
            subject,
            overrides: self.overlay.subjects.of(subject).get(id),
            own: self.entries.subjects.of(subject).get(id),
        }
    }

    fn allowed_service(
        &self,
        caller: Option<&Indexer>,
        service: &str,
    ) -> Result<ServiceId, Refused> {
        let id = self.service(service).ok_or_else(|| Refused::UnknownService(service.into()))?;
        match caller {
            Some(indexer) if !indexer.may_use(id) => Err(Refused::ServiceNotAllowed {
                indexer: indexer.name().into(),
                service: service.into(),
            }),
            _ => Ok(id),
        }
    }
}

impl lease::Policy for Policy {
    /// Whether the organization has an entry or an override.
    fn knows(&self, organization: &str) -> bool {
        self.is_known(Subject::Organization, organization)
    }

    fn budgets(&self, organization: &str) -> &[Budget] {
        self.organization_budgets(organization)
    }

    fn is_organization_disabled(&self, organization: &str) -> bool {
        self.disabled_by(Subject::Organization, organization).0
    }

    fn is_api_key_disabled(&self, api_key: &str) -> bool {
        self.disabled_by(Subject::ApiKey, api_key).0
    }

    fn is_named(&self, service: &str) -> bool {
        self.has_entry(service)
    }

    fn observes(&self, service: &str) -> bool {
        self.service(service).is_some_and(|id| self.entries.services[id.index()].observe)
    }
}

impl From<Entries> for Policy {
    fn from(entries: Entries) -> Self {
        Self { entries: Arc::new(entries), overlay: Arc::default(), number: 0 }
    }
}
