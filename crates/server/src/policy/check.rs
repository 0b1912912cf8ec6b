//! From the shape of a policy file to a policy: what names point to, and what values make sense.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use lease::{Budget, Limits, MAX_ID_BYTES, MAX_TTL};
use toml::Spanned;

use super::entries::{ApiKey, Entries, Organization, Plan, Service, ServiceLimits, Table};
use super::file::{self, File};
use super::indexers::Indexer;
use super::{DEFAULT_SERVICE, Loaded, Place, Policy, PolicyError, ServiceId, Warning};
use crate::settings::{self, Given};

/// Clients in the field beat every 20 s, one lease after another: a shorter TTL loses leases.
const SHORT_TTL: Duration = Duration::from_secs(60);

/// How many services without an entry one indexer may hold leases of, unless the file says more.
const MAX_UNNAMED_SERVICES: u64 = 64;

/// Reads `text`, checks it as a whole and builds the policy.
pub(super) fn load(text: &str, name: &Path) -> Result<Loaded, PolicyError> {
    let source = Source { text, name };
    let file: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        // toml adds a drawing of the place on further lines; ours is in front already.
        source.error(span, error.message().lines().collect::<Vec<_>>().join("; "))
    })?;
    let server = server(&source, file.server)?;
    let mut entries = Entries::default();
    let mut warnings = Vec::new();
    services(&source, file.services, &mut entries, &mut warnings)?;
    let plans = plans(&source, file.plans, &mut entries)?;
    organizations(&source, file.organizations, &plans, &mut entries)?;
    api_keys(&source, file.api_keys, &mut entries)?;
    indexers(&source, file.indexers, &mut entries)?;
    if entries.services.is_empty() {
        let problem = "no [services] at all: every borrow will be refused".to_owned();
        warnings.push(Warning { place: source.place(0), problem });
    }
    Ok(Loaded { policy: Policy::from(entries), server, warnings, file: None })
}

/// The text of a file, for saying where in it something stands.
struct Source<'a> {
    text: &'a str,
    name: &'a Path,
}

impl Source<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            file: self.name.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    fn error(&self, span: Range<usize>, problem: impl Into<String>) -> PolicyError {
        PolicyError { place: self.place(span.start), problem: problem.into() }
    }

    /// Takes a name that ids of requests are compared with.
    fn name(&self, name: &Spanned<String>) -> Result<Box<str>, PolicyError> {
        match name.get_ref().len() {
            0 => Err(self.error(name.span(), "a name is empty")),
            1..=MAX_ID_BYTES => Ok(name.get_ref().as_str().into()),
            _ => Err(self.error(
                name.span(),
                format!("a name is longer than {MAX_ID_BYTES} bytes, which no request can be"),
            )),
        }
    }
}

/// Takes in the settings beside the policy.
fn server(source: &Source<'_>, written: file::Server) -> Result<Given, PolicyError> {
    let mut given = Given::default();
    let mut written: Vec<_> = written.into_iter().collect();
    written.sort_by_key(|(name, _)| name.span().start);
    for (name, value) in written {
        // What is wrong is the value, unless nothing is called that.
        let known = settings::find(name.get_ref()).is_some();
        let span = if known { value.span() } else { name.span() };
        let place = source.place(name.span().start);
        given
            .set_in_file(name.get_ref(), value.into_inner(), place)
            .map_err(|problem| source.error(span, problem))?;
    }
    Ok(given)
}

fn services(
    source: &Source<'_>,
    written: file::Named<file::Service>,
    entries: &mut Entries,
    warnings: &mut Vec<Warning>,
) -> Result<(), PolicyError> {
    for (name, written) in written {
        let ttl = match &written.ttl {
            None => SHORT_TTL,
            Some(ttl) => {
                let file::Span(value) = *ttl.get_ref();
                if value.is_zero() || value > MAX_TTL {
                    let days = MAX_TTL.as_secs() / 86_400;
                    return Err(source
                        .error(ttl.span(), format!("ttl must be over 0 and at most {days} days")));
                }
                if value < SHORT_TTL {
                    let problem = format!(
                        "ttl of service {:?} is under 60s: clients that beat every 20s, one lease \
                         after another, may lose leases",
                        name.get_ref()
                    );
                    warnings.push(Warning { place: source.place(ttl.span().start), problem });
                }
                value
            }
        };
        let minimal_life = match &written.minimal_life {
            None => Duration::from_secs(5),
            Some(life) => {
                let file::Span(value) = *life.get_ref();
                if value > lease::MAX_MINIMAL_LIFE {
                    return Err(source.error(life.span(), "minimal_life must be at most 10m"));
                }
                value
            }
        };
        if let Some(max) = &written.max_unnamed_services
            && name.get_ref() != DEFAULT_SERVICE
        {
            let problem = "max_unnamed_services belongs into [services.default]: it is about \
                           services without an entry of their own";
            return Err(source.error(max.span(), problem));
        }
        let index = u32::try_from(entries.services.len())
            .map_err(|_| source.error(name.span(), "too many services"))?;
        let id = ServiceId(index);
        let name = source.name(&name)?;
        if &*name == DEFAULT_SERVICE {
            entries.default_service = Some(id);
            let max = written.max_unnamed_services.map(|max| max.get_ref().0);
            entries.max_unnamed_services = max.unwrap_or(MAX_UNNAMED_SERVICES);
        }
        entries.services_by_name.insert(name.clone(), id);
        entries.services.push(Service {
            name,
            limits: Limits {
                service: written.max_total.map(|limit| limit.0),
                organization: written.max_per_organization.map(|limit| limit.0),
                api_key: written.max_per_api_key.map(|limit| limit.0),
            },
            ttl,
            minimal_life,
            observe: written.observe,
        });
    }
    Ok(())
}

/// Finds the entry a name points to; nothing is passed on to the default here, or a misspelt name
/// would set a limit on something else.
fn service(
    source: &Source<'_>,
    entries: &Entries,
    name: &Spanned<String>,
) -> Result<ServiceId, PolicyError> {
    entries.services_by_name.get(name.get_ref().as_str()).copied().ok_or_else(|| {
        let known: Vec<_> = entries.services.iter().map(|service| &*service.name).collect();
        let problem = format!(
            "there is no service {:?}; the services are: {}",
            name.get_ref(),
            known.join(", ")
        );
        source.error(name.span(), problem)
    })
}

fn limits(
    source: &Source<'_>,
    entries: &Entries,
    written: &file::ServiceLimits,
) -> Result<ServiceLimits, PolicyError> {
    written
        .iter()
        .map(|(name, limit)| Ok((service(source, entries, name)?, limit.0)))
        .collect::<Result<_, _>>()
        .map(ServiceLimits)
}

fn plans(
    source: &Source<'_>,
    written: file::Named<file::Plan>,
    entries: &mut Entries,
) -> Result<BTreeMap<String, usize>, PolicyError> {
    let mut indexes = BTreeMap::new();
    for (name, written) in written {
        let limits = limits(source, entries, &written.limits)?;
        let mut budgets = Vec::with_capacity(written.budgets.len());
        for (metric, budget) in written.budgets {
            let amount = *budget.amount.get_ref();
            if !amount.is_finite() || amount < 0.0 {
                return Err(
                    source.error(budget.amount.span(), "the amount of a budget must be 0 or more")
                );
            }
            budgets.push(Budget { metric: source.name(&metric)?, amount, per: budget.per.into() });
        }
        let name = name.into_inner();
        indexes.insert(name.clone(), entries.plans.len());
        entries.plans.push(Plan { name: name.into(), limits, budgets: budgets.into() });
    }
    Ok(indexes)
}

fn organizations(
    source: &Source<'_>,
    written: file::Named<file::Organization>,
    plans: &BTreeMap<String, usize>,
    entries: &mut Entries,
) -> Result<(), PolicyError> {
    let mut organizations = Table::with_capacity_and_hasher(written.len(), Default::default());
    for (name, written) in written {
        let plan = match &written.plan {
            None => None,
            Some(plan) => Some(*plans.get(plan.get_ref()).ok_or_else(|| {
                source.error(plan.span(), format!("there is no plan {:?}", plan.get_ref()))
            })?),
        };
        let limits = limits(source, entries, &written.limits)?;
        let organization = Organization { plan, limits, disabled: written.disabled };
        organizations.insert(source.name(&name)?, organization);
    }
    entries.organizations = organizations;
    Ok(())
}

fn api_keys(
    source: &Source<'_>,
    written: file::Named<file::ApiKey>,
    entries: &mut Entries,
) -> Result<(), PolicyError> {
    let mut api_keys = Table::with_capacity_and_hasher(written.len(), Default::default());
    for (name, written) in written {
        let limits = limits(source, entries, &written.limits)?;
        api_keys.insert(source.name(&name)?, ApiKey { limits, disabled: written.disabled });
    }
    entries.api_keys = api_keys;
    Ok(())
}

fn indexers(
    source: &Source<'_>,
    written: Vec<file::Indexer>,
    entries: &mut Entries,
) -> Result<(), PolicyError> {
    let mut names = BTreeMap::new();
    for written in written {
        let name = source.name(&written.name)?;
        if names.insert(name.clone(), ()).is_some() {
            return Err(
                source.error(written.name.span(), format!("a second indexer is named {name:?}"))
            );
        }
        let services = match &written.services {
            None => None,
            Some(names) => Some(
                names
                    .iter()
                    .map(|name| service(source, entries, name))
                    .collect::<Result<_, _>>()?,
            ),
        };
        let indexer = Indexer::new(name.clone(), services);
        if let Err(other) = entries.indexers.add(indexer, &written.key_sha256.0) {
            let other = entries.indexers.iter().nth(other).map_or("another", Indexer::name);
            let problem = format!("a key of indexer {name:?} is a key of {other:?} already");
            return Err(source.error(written.name.span(), problem));
        }
    }
    Ok(())
}
