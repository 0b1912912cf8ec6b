//! The policy: which terms a borrow gets, and who may ask.
//!
//! A policy is read from a TOML file once, checked as a whole and never changed after that; a
//! changed file is another policy. Looking up the terms of a request allocates nothing.

mod check;
mod file;
mod indexers;
pub mod overrides;
mod summary;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use lease::{Budget, Limits, Reason, Request, Terms, WallTime};

pub use file::ServerSection;
pub use indexers::{Indexer, Unauthenticated};
pub use summary::{ServiceSummary, Summary};

use crate::error::Error;
use indexers::Indexers;

/// The name of the entry that stands for every service without an entry of its own.
pub const DEFAULT_SERVICE: &str = "default";

/// A table that is filled from the policy file only: nobody outside chooses its keys.
type Table<T> = HashMap<Box<str>, T, RandomState>;

/// Everything an operator decided: services, plans, organizations, API keys and indexers.
///
/// ```
/// use lease::{Request, WallTime};
/// use tgm_session_server::Policy;
///
/// let file = r#"
///     [services.t1r]
///     max_per_organization = 10
///     [plans.pro]
///     limits = { t1r = 30 }
///     [organizations.acme]
///     plan = "pro"
/// "#;
/// let policy = Policy::parse(file, "policy.toml").expect("a sound policy").policy;
///
/// let ruling = policy.terms(None, &Request::session("t1r", "acme"), WallTime::default).expect("terms");
/// assert_eq!(ruling.terms.limits.organization, Some(30));
/// let refused = policy.terms(None, &Request::session("t9", "acme"), WallTime::default).unwrap_err();
/// assert_eq!(refused.to_string(), "the policy knows no service \"t9\" and no default");
/// ```
#[derive(Debug, Default)]
pub struct Policy {
    services: Vec<Service>,
    services_by_name: Table<ServiceId>,
    default_service: Option<ServiceId>,
    plans: Vec<Plan>,
    organizations: Table<Organization>,
    api_keys: Table<ApiKey>,
    indexers: Indexers,
}

/// Names one service entry of one policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(u32);

impl ServiceId {
    /// The place of the entry in [`Policy::services`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
struct Service {
    name: Box<str>,
    limits: Limits,
    ttl: Duration,
    minimal_life: Duration,
    observe: bool,
}

/// Ceilings by service. A handful at most, so a scan beats a table.
#[derive(Debug, Default)]
struct ServiceLimits(Box<[(ServiceId, u64)]>);

impl ServiceLimits {
    fn get(&self, service: ServiceId) -> Option<u64> {
        self.0.iter().find(|(id, _)| *id == service).map(|(_, limit)| *limit)
    }
}

#[derive(Debug)]
struct Plan {
    limits: ServiceLimits,
    budgets: Box<[Budget]>,
}

#[derive(Debug)]
struct Organization {
    plan: Option<usize>,
    limits: ServiceLimits,
    disabled: bool,
}

#[derive(Debug)]
struct ApiKey {
    limits: ServiceLimits,
    disabled: bool,
}

/// What the policy says about one borrow.
#[derive(Clone, Copy, Debug)]
pub struct Ruling<'p> {
    /// The entry that speaks for the service.
    pub service: ServiceId,
    /// The terms.
    pub terms: Terms<'p>,
}

/// A request the policy refuses whatever is free.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
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
    /// The policy of a server that was given none: `t1r` sessions 10 per organization, `t2w`
    /// workers 100 per organization, any other service 10 per organization, no indexers.
    ///
    /// Without indexers a server listens on loopback only, unless it is told otherwise.
    pub fn built_in() -> Self {
        const FILE: &str = "
            [services.default]
            max_per_organization = 10
            [services.t1r]
            max_per_organization = 10
            [services.t2w]
            max_per_organization = 100
        ";
        Self::parse(FILE, "built-in policy").expect("the built-in policy is sound").policy
    }

    /// Reads the policy file at `path`.
    ///
    /// # Errors
    ///
    /// [`Error::PolicyUnreadable`] when the file cannot be read, and [`Error::Policy`] with the
    /// place and the reason when it is not a sound policy.
    pub fn load(path: impl AsRef<Path>) -> Result<Loaded, Error> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::PolicyUnreadable { path: path.to_owned(), source })?;
        Ok(Self::parse(&text, path)?)
    }

    /// Reads a policy from `text`; `name` is what errors call the file.
    ///
    /// # Errors
    ///
    /// [`PolicyError`] with the first thing that is wrong: bad TOML, a name this version does not
    /// know, a value that makes no sense, or a name that points nowhere.
    pub fn parse(text: &str, name: impl Into<PathBuf>) -> Result<Loaded, PolicyError> {
        check::load(text, &name.into())
    }

    /// The terms of `request`, which came from `caller`; `wall` is asked where budgets need it.
    ///
    /// A ceiling over an organization is the organization's own, else its plan's, else the
    /// service's; one over an API key is the key's own, else the service's.
    ///
    /// # Errors
    ///
    /// [`Refused`], in the order of the contract: unknown service, a service the indexer may not
    /// use, a disabled organization, a disabled API key.
    pub fn terms(
        &self,
        caller: Option<&Indexer>,
        request: &Request<'_>,
        wall: impl FnOnce() -> WallTime,
    ) -> Result<Ruling<'_>, Refused> {
        let id = self.allowed_service(caller, request.service)?;
        let organization = self.organizations.get(request.organization);
        let api_key = self.api_keys.get(request.api_key);
        if let Some(reason) = disabled(organization, api_key) {
            return Err(Refused::Disabled(reason));
        }
        let service = &self.services[id.index()];
        let budgets = self.budgets_of(organization);
        let terms = Terms {
            limits: Limits {
                service: service.limits.service,
                organization: self.organization_limit(organization, id),
                api_key: api_key
                    .and_then(|api_key| api_key.limits.get(id))
                    .or(service.limits.api_key),
            },
            ttl: service.ttl,
            minimal_life: service.minimal_life,
            observe: service.observe,
            budgets,
            wall: if budgets.is_empty() { WallTime::default() } else { wall() },
        };
        Ok(Ruling { service: id, terms })
    }

    /// The ceiling over the pool of `organization` in `service`; a disabled organization has one too.
    ///
    /// # Errors
    ///
    /// [`Refused`] for an unknown service, or one that `caller` may not use.
    pub fn pool_limit(
        &self,
        caller: Option<&Indexer>,
        service: &str,
        organization: &str,
    ) -> Result<Option<u64>, Refused> {
        let id = self.allowed_service(caller, service)?;
        Ok(self.organization_limit(self.organizations.get(organization), id))
    }

    /// Why leases of `organization` and `api_key` may not live, if one of them is disabled.
    pub fn disabled(&self, organization: &str, api_key: &str) -> Option<Reason> {
        disabled(self.organizations.get(organization), self.api_keys.get(api_key))
    }

    /// The organizations that have usage budgets, and those.
    pub fn budgets(&self) -> impl Iterator<Item = (&str, &[Budget])> {
        self.organizations.iter().filter_map(|(name, organization)| {
            let budgets = self.budgets_of(Some(organization));
            (!budgets.is_empty()).then_some((&**name, budgets))
        })
    }

    /// The usage budgets of `organization`.
    pub fn organization_budgets(&self, organization: &str) -> &[Budget] {
        self.budgets_of(self.organizations.get(organization))
    }

    /// Whether ceilings and budgets of `service` are counted but refuse nobody.
    pub fn observes(&self, service: &str) -> bool {
        self.service(service).is_some_and(|id| self.services[id.index()].observe)
    }

    /// The names of the service entries, the default's too, in the order of their ids.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &str> {
        self.services.iter().map(|service| &*service.name)
    }

    /// The entry that speaks for the service called `name`.
    pub fn service(&self, name: &str) -> Option<ServiceId> {
        self.services_by_name.get(name).copied().or(self.default_service)
    }

    /// Whether any indexer is configured, so that every call has to show a key.
    pub fn has_indexers(&self) -> bool {
        !self.indexers.is_empty()
    }

    /// The indexer whose key `key` is; `None` while no indexers are configured.
    ///
    /// Only the SHA-256 of a key is known here, and it is compared in constant time.
    ///
    /// # Errors
    ///
    /// [`Unauthenticated`] when indexers are configured and `key` is missing or nobody's.
    pub fn identify(&self, key: Option<&[u8]>) -> Result<Option<&Indexer>, Unauthenticated> {
        self.indexers.identify(key)
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

    fn organization_limit(
        &self,
        organization: Option<&Organization>,
        service: ServiceId,
    ) -> Option<u64> {
        organization
            .and_then(|organization| {
                let plan = organization.plan.map(|plan| &self.plans[plan].limits);
                organization.limits.get(service).or_else(|| plan?.get(service))
            })
            .or(self.services[service.index()].limits.organization)
    }

    fn budgets_of(&self, organization: Option<&Organization>) -> &[Budget] {
        organization
            .and_then(|organization| organization.plan)
            .map_or(&[], |plan| &self.plans[plan].budgets)
    }
}

fn disabled(organization: Option<&Organization>, api_key: Option<&ApiKey>) -> Option<Reason> {
    if organization.is_some_and(|organization| organization.disabled) {
        return Some(Reason::OrganizationDisabled);
    }
    api_key.is_some_and(|api_key| api_key.disabled).then_some(Reason::ApiKeyDisabled)
}

/// A policy file that was read: the policy, the settings beside it, and what to think about.
#[derive(Debug)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// The `[server]` section.
    pub server: ServerSection,
    /// What is allowed but likely not meant.
    pub warnings: Vec<Warning>,
}

/// What is wrong with a policy file, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct PolicyError {
    /// Where it stands.
    pub place: Place,
    /// What is wrong, in one line.
    pub problem: String,
}

/// Something in a policy file that is allowed but likely not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Where it stands.
    pub place: Place,
    /// What to think about, in one line.
    pub problem: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// A place in a policy file. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}
