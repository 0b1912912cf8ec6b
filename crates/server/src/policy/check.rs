//! From the shape of a policy file to a policy: what names point to, and what values make sense.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use lease::{Budget, Limits, MAX_ID_BYTES, MAX_TTL};
use toml::Spanned;

use super::digests::{Digest, KeyFiles};
use super::entries::{ApiKey, Entries, Organization, Plan, Service, ServiceLimits, Table};
use super::file::{self, File};
use super::indexers::Indexer;
use super::{DEFAULT_SERVICE, Loaded, Place, Policy, PolicyError, ServiceId, Warning};
use crate::settings::{self, Given};

/// Clients in the field beat every 20 s, one lease after another: a shorter TTL loses leases.
const SHORT_TTL: Duration = Duration::from_secs(60);

/// The most warnings that are told about one file: each of them is a line in the log, at every load.
const MAX_WARNINGS: usize = 100;

/// The most services that an error names.
const MAX_NAMED: usize = 20;

/// How many services without an entry one indexer may hold leases of, unless the file says more.
const MAX_UNNAMED_SERVICES: u64 = 64;

/// Reads `text`, checks it as a whole and builds the policy; `files` reads the files of keys that
/// it names.
pub(super) fn load(
    text: &str,
    name: &Path,
    files: &mut KeyFiles<'_>,
) -> Result<Loaded, PolicyError> {
    let source = Source::new(text, name);
    let file: File = toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        // toml adds a drawing of the place on further lines; ours is in front already.
        source.error(span, error.message().lines().collect::<Vec<_>>().join("; "))
    })?;
    let server = server(&source, file.server)?;
    let mut entries = Entries::default();
    let mut warnings = Warnings::default();
    services(&source, file.services, &mut entries, &mut warnings)?;
    let plans = plans(&source, file.plans, &mut entries)?;
    organizations(&source, file.organizations, &plans, &mut entries)?;
    api_keys(&source, file.api_keys, &mut entries)?;
    indexers(&source, file.indexers, &mut entries, files)?;
    if entries.services.is_empty() {
        warnings.add(|| source.warning(0, "no [services] at all: every borrow will be refused"));
    }
    let warnings = warnings.told(&source);
    Ok(Loaded { policy: Policy::from(entries), server, warnings, file: None })
}

/// What to tell about a file: so many warnings, and how many more there are.
#[derive(Debug, Default)]
struct Warnings {
    kept: Vec<Warning>,
    left_out: usize,
}

impl Warnings {
    fn add(&mut self, warning: impl FnOnce() -> Warning) {
        if self.kept.len() < MAX_WARNINGS {
            self.kept.push(warning());
        } else {
            self.left_out += 1;
        }
    }

    fn told(mut self, source: &Source<'_>) -> Vec<Warning> {
        if self.left_out > 0 {
            let problem = format!("{} more warnings are left out", self.left_out);
            self.kept.push(source.warning(0, problem));
        }
        self.kept
    }
}

/// The text of a file, for saying where in it something stands.
struct Source<'a> {
    text: &'a str,
    name: &'a Path,
    /// Where each line begins.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str, name: &'a Path) -> Self {
        let breaks = text.match_indices('\n').map(|(newline, _)| newline + 1);
        Self { text, name, lines: std::iter::once(0).chain(breaks).collect() }
    }
}

impl Source<'_> {
    /// Takes as long as the line is, however long the file.
    fn place(&self, offset: usize) -> Place {
        let offset = if self.text.is_char_boundary(offset) { offset } else { self.text.len() };
        let line = self.lines.partition_point(|start| *start <= offset);
        let before = &self.text[self.lines[line - 1]..offset];
        #[cfg(test)]
        tests::SCANNED.with(|scanned| scanned.set(scanned.get() + before.len()));
        Place { file: self.name.to_owned(), line, column: before.chars().count() + 1 }
    }

    fn warning(&self, offset: usize, problem: impl Into<String>) -> Warning {
        Warning { place: self.place(offset), problem: problem.into() }
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
    warnings: &mut Warnings,
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
                    let at = ttl.span().start;
                    warnings.add(|| {
                        let problem = format!(
                            "ttl of service {:?} is under 60s: clients that beat every 20s, one \
                             lease after another, may lose leases",
                            name.get_ref()
                        );
                        source.warning(at, problem)
                    });
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
        let known = entries.services.iter().map(|service| &*service.name);
        let known: Vec<_> = known.take(MAX_NAMED).collect();
        let more = entries.services.len() - known.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let (named, known) = (name.get_ref(), known.join(", "));
        let problem = format!("there is no service {named:?}; the services are: {known}{more}");
        source.error(name.span(), problem)
    })
}

fn limits(
    source: &Source<'_>,
    entries: &Entries,
    written: &file::ServiceLimits,
) -> Result<ServiceLimits, PolicyError> {
    written.iter().map(|(name, limit)| Ok((service(source, entries, name)?, limit.0))).collect()
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
    files: &mut KeyFiles<'_>,
) -> Result<(), PolicyError> {
    let mut names = BTreeSet::new();
    for written in written {
        let name = source.name(&written.name)?;
        if !names.insert(name.clone()) {
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
        let indexer = entries.indexers.add(Indexer::new(name.clone(), services));
        for (digest, place) in keys(source, &written, files)? {
            let Err(other) = entries.indexers.add_key(indexer, digest) else { continue };
            let other = entries.indexers.iter().nth(other).map_or("another", Indexer::name);
            let problem = format!("a key of indexer {name:?} is a key of {other:?} already");
            let place = place.unwrap_or_else(|| source.place(written.name.span().start));
            return Err(PolicyError { place, problem });
        }
    }
    Ok(())
}

/// The digests of the keys of one indexer, those of its file each with where it stands there.
fn keys(
    source: &Source<'_>,
    written: &file::Indexer,
    files: &mut KeyFiles<'_>,
) -> Result<Vec<(Digest, Option<Place>)>, PolicyError> {
    let at = written.name.span();
    let here = written.key_sha256.iter().flat_map(|digests| &digests.0);
    let mut keys: Vec<_> = here.map(|digest| (*digest, None)).collect();
    if let Some(path) = &written.key_sha256_file {
        let place = || source.place(path.span().start);
        // What a policy names stands where the policy stands.
        let folder = source.name.parent().unwrap_or(Path::new(""));
        let digests = files.digests(&folder.join(path.get_ref()), place)?;
        keys.extend(digests.into_iter().map(|(digest, place)| (digest, Some(place))));
    } else if written.key_sha256.is_none() {
        let problem = "an indexer without a key: add key_sha256 or key_sha256_file";
        return Err(source.error(at, problem));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fmt::Write as _;

    use super::*;

    thread_local! {
        /// How many bytes were looked at to find places.
        pub(super) static SCANNED: Cell<usize> = const { Cell::new(0) };
    }

    fn loaded(text: &str) -> Loaded {
        load(text, Path::new("p.toml"), &mut KeyFiles::new(&mut crate::watch::read)).unwrap()
    }

    #[test]
    fn a_place_is_told_in_lines_and_characters() {
        let text = "é = 1\n\nab = 'é'\n";
        let source = Source::new(text, Path::new("p.toml"));
        for offset in (0..=text.len()).filter(|offset| text.is_char_boundary(*offset)) {
            let before = &text[..offset];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
            let place = source.place(offset);
            assert_eq!((place.line, place.column), (line, column), "{offset}");
        }
    }

    #[test]
    fn ten_times_the_services_are_no_more_work_to_say_where_they_stand_and_no_more_warnings() {
        let scanned = [2_000, 20_000].map(|services| {
            let mut text = String::new();
            for service in 0..services {
                writeln!(text, "[services.s{service}]\nttl = '30s'").unwrap();
            }
            SCANNED.set(0);
            let warnings = loaded(&text).warnings;
            assert_eq!(warnings.len(), MAX_WARNINGS + 1);
            let more =
                format!("p.toml:1:1: {} more warnings are left out", services - MAX_WARNINGS);
            assert_eq!(warnings.last().unwrap().to_string(), more);
            SCANNED.get()
        });
        assert_eq!(scanned[1], scanned[0], "places are found without looking at the whole file");
    }

    #[test]
    fn a_name_that_points_nowhere_names_some_of_the_services_and_counts_the_others() {
        let mut text = String::new();
        for service in 0..30 {
            writeln!(text, "[services.s{service:02}]").unwrap();
        }
        text += "[plans.pro]\nlimits = { t1r = 1 }\n";
        let mut read = crate::watch::read;
        let error = load(&text, Path::new("p"), &mut KeyFiles::new(&mut read)).unwrap_err();
        assert!(error.problem.ends_with("s18, s19 and 10 more"), "{error}");
    }
}
