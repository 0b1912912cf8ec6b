//! Checks the content of a policy file: resolves names, checks values, and builds the policy.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lease::{Budget, Limits, MAX_ID_BYTES, MAX_TTL, whole_milliseconds};
use toml::Spanned;

use crate::digests::{Digest, read_digests};
use crate::entries::{Entries, Plan, SubjectEntry};
use crate::error::{Place, PolicyError, Warning};
use crate::file;
use crate::findings::{Findings, SourceText};
use crate::indexers::Indexer;
use crate::nearest::nearest;
use crate::outside::{Nothing, Outside, SettingError};
use crate::overrides::Subject;
use crate::policy::{DEFAULT_SERVICE, Policy};
use crate::reading::{self, Removed, Shape};
use crate::services::{Service, ServiceId, ServiceLimits};

/// The setting of the `[server]` section that names an organization.
const DEFAULT_ORGANIZATION: &str = "default_organization";

/// The default TTL. Deployed clients send a keep-alive every 20 s, one lease after another, and lose
/// leases with a shorter TTL.
const SHORT_TTL: Duration = Duration::from_secs(60);

/// The default minimal life.
const MINIMAL_LIFE: Duration = Duration::from_secs(5);

/// The most services that an error message lists.
const MAX_NAMED: usize = 20;

/// The default for the most services without an entry of which one indexer may hold leases.
const MAX_UNNAMED_SERVICES: u64 = 64;

/// The metrics that deployed services report.
const KNOWN_METRICS: [&str; 5] = [
    "egress_bytes",
    "processed_blocks",
    "live_uncompressed_read_bytes",
    "file_uncompressed_read_bytes",
    "file_compressed_read_bytes",
];

/// A policy that was read, and warnings about it.
#[derive(Debug)]
pub struct Parsed {
    /// The policy.
    pub policy: Policy,
    /// Entries that are allowed but probably mistakes.
    pub warnings: Vec<Warning>,
}

/// Reads `text`, checks all of it and builds the policy. `name` is the name of the file in errors.
///
/// Files of keys that the text names are read from `outside`; a relative path starts at the folder
/// of `name`. Settings in its `[server]` section go to `outside`.
///
/// # Errors
///
/// [`PolicyError`] with all problems: invalid TOML, an unknown name, an invalid value, a name without
/// an entry, or a file of keys that cannot be used.
pub fn parse(text: &str, name: &Path, outside: &mut dyn Outside) -> Result<Parsed, PolicyError> {
    let source = SourceText::new(text, name);
    let mut findings = Findings::default();
    let Shape { file, removed } = reading::read(&source, text, &mut findings);
    let entries = Entries::default();
    let mut check = Check { source: &source, removed, findings, entries };
    let default_organization = check.server(file.server, outside);
    check.services(file.services);
    check.plans(file.plans);
    check.organizations(file.organizations);
    check.api_keys(file.api_keys);
    check.indexers(file.indexers, outside);
    if let Some((place, name)) = default_organization {
        check.default_organization(place, &name);
    }
    let Check { mut findings, entries, .. } = check;
    if entries.services.is_empty() {
        findings.warn(|| source.warning(0, "no [services] at all: every borrow will be refused"));
    }
    let warnings = findings.into_result(&source)?;
    Ok(Parsed { policy: Policy::from(entries), warnings })
}

impl Policy {
    /// Reads a policy that names no files and has no `[server]` section. [`parse`] reads any policy.
    ///
    /// # Errors
    ///
    /// As [`parse`].
    pub fn parse(text: &str, name: impl AsRef<Path>) -> Result<Parsed, PolicyError> {
        parse(text, name.as_ref(), &mut Nothing)
    }

    /// The policy of a server without a policy file: `t1r` sessions 10 per organization, `t2w`
    /// workers 100 per organization, any other service 10 per organization, no indexers.
    ///
    /// A caller that names no organization is `anonymous` under it. Without indexers a server listens
    /// on loopback only, unless it is configured otherwise.
    pub fn built_in() -> Self {
        const FILE: &str = "
            [services.default]
            max_per_organization = 10
            [services.t1r]
            max_per_organization = 10
            [services.t2w]
            max_per_organization = 100
        ";
        let parsed = Self::parse(FILE, "built-in policy").expect("the built-in policy is valid");
        let mut entries =
            Arc::into_inner(parsed.policy.entries).expect("the entries are not shared yet");
        entries.is_built_in = true;
        Self::from(entries)
    }
}

impl Warning {
    /// The same warning for a caller that knows that no report has contained the metric.
    #[must_use]
    pub fn of_unreported(&self, metric: &str) -> Self {
        let nearest = nearest(metric, KNOWN_METRICS);
        let problem =
            format!("a budget on {metric:?}, which no report has carried so far{nearest}");
        Self { problem, ..self.clone() }
    }
}

/// A file that is being checked. All parts are checked, also after errors.
struct Check<'s> {
    source: &'s SourceText<'s>,
    removed: Removed,
    findings: Findings,
    entries: Entries,
}

impl Check<'_> {
    fn error(&mut self, span: Range<usize>, problem: impl Into<String>) {
        self.findings.error(self.source.error(span, problem));
    }

    /// Checks a name that is compared with ids of requests.
    fn name(&mut self, name: &Spanned<String>) -> Option<Box<str>> {
        let problem = match name.get_ref().len() {
            0 => "a name is empty".to_owned(),
            1..=MAX_ID_BYTES => return Some(name.get_ref().as_str().into()),
            _ => format!("a name is longer than {MAX_ID_BYTES} bytes, which no request can be"),
        };
        self.error(name.span(), problem);
        None
    }

    /// Passes the settings of the `[server]` section to `outside`, and returns the default organization
    /// and its place.
    fn server(
        &mut self,
        written: file::Server,
        outside: &mut dyn Outside,
    ) -> Option<(Place, String)> {
        let mut default_organization = None;
        let mut written: Vec<_> = written.into_iter().collect();
        written.sort_by_key(|(name, _)| name.span().start);
        for (name, value) in written {
            let place = self.source.place(name.span().start);
            let (name_at, value_at) = (name.span(), value.span());
            if name.get_ref() == DEFAULT_ORGANIZATION
                && let Some(organization) = value.get_ref().as_str()
            {
                default_organization = Some((place.clone(), organization.to_owned()));
            }
            match outside.set(name.get_ref(), value.into_inner(), place) {
                Ok(()) => {}
                Err(SettingError::Unknown(problem)) => self.error(name_at, problem),
                Err(SettingError::Invalid(problem)) => self.error(value_at, problem),
            }
        }
        default_organization
    }

    fn services(&mut self, written: file::Named<file::Service>) {
        for (name, written) in written {
            let ttl = self.ttl(name.get_ref(), written.ttl.as_ref());
            let written_life = written.minimal_life.as_ref();
            let minimal_life = written_life.map_or(MINIMAL_LIFE, |life| life.get_ref().0);
            if let Some(life) = written_life
                && minimal_life > lease::MAX_MINIMAL_LIFE
            {
                self.error(life.span(), "minimal_life must be at most 10m");
            }
            if let Some(max) = &written.max_unnamed_services
                && name.get_ref() != DEFAULT_SERVICE
            {
                let problem = "max_unnamed_services belongs into [services.default]: it is about \
                               services without an entry of their own";
                self.error(max.span(), problem);
            }
            let Ok(index) = u32::try_from(self.entries.services.len()) else {
                return self.error(name.span(), "too many services");
            };
            let id = ServiceId(index);
            let Some(name) = self.name(&name) else { continue };
            if &*name == DEFAULT_SERVICE {
                self.entries.default_service = Some(id);
                let max = written.max_unnamed_services.map(|max| max.get_ref().0);
                self.entries.max_unnamed_services = max.unwrap_or(MAX_UNNAMED_SERVICES);
            }
            self.entries.services_by_name.insert(name.clone(), id);
            self.entries.services.push(Service {
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
    }

    /// Checks the TTL of a service, and rounds it up to whole milliseconds.
    fn ttl(&mut self, service: &str, written: Option<&Spanned<file::Span>>) -> Duration {
        let Some(ttl) = written else { return SHORT_TTL };
        let file::Span(value) = *ttl.get_ref();
        if value.is_zero() || value > MAX_TTL {
            let days = MAX_TTL.as_secs() / 86_400;
            self.error(ttl.span(), format!("ttl must be over 0 and at most {days} days"));
            return SHORT_TTL;
        }
        if value < SHORT_TTL {
            let (source, at) = (self.source, ttl.span().start);
            self.findings.warn(|| {
                let problem = format!(
                    "ttl of service {service:?} is under 60s: clients that beat every 20s, one \
                     lease after another, may lose leases"
                );
                source.warning(at, problem)
            });
        }
        Duration::from_millis(whole_milliseconds(value).into())
    }

    /// Finds the entry of a name. The default entry does not count here, or a misspelt name would set a
    /// limit on the default.
    fn service(&mut self, name: &Spanned<String>) -> Option<ServiceId> {
        let named = name.get_ref();
        let found = self.entries.services_by_name.get(named.as_str()).copied();
        if found.is_none() && !self.removed.has(named) && !self.removed.has("services") {
            let services = &self.entries.services;
            let names = || services.iter().map(|service| &*service.name);
            let known: Vec<_> = names().take(MAX_NAMED).collect();
            let more = services.len() - known.len();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let (nearest, known) = (nearest(named, names()), known.join(", "));
            let problem =
                format!("there is no service {named:?}{nearest}; the services are: {known}{more}");
            self.error(name.span(), problem);
        }
        found
    }

    fn limits(&mut self, written: &file::ServiceLimits) -> ServiceLimits {
        let limits =
            written.iter().filter_map(|(name, limit)| Some((self.service(name)?, limit.0)));
        limits.collect()
    }

    fn plans(&mut self, written: file::Named<file::Plan>) {
        for (name, written) in written {
            let limits = self.limits(&written.limits);
            let mut budgets = Vec::with_capacity(written.budgets.len());
            for (metric, budget) in written.budgets {
                let amount = *budget.amount.get_ref();
                if !amount.is_finite() || amount < 0.0 {
                    self.error(budget.amount.span(), "the amount of a budget must be 0 or more");
                }
                let at = metric.span().start;
                let Some(metric) = self.name(&metric) else { continue };
                self.warn_of_metric(at, &metric);
                budgets.push(Budget { metric, amount, per: budget.per });
            }
            let name = name.into_inner().into();
            self.entries.plans.push(Plan { name, limits, budgets: budgets.into() });
        }
    }

    /// Warns about a budget on a metric that no service reports: it is never spent.
    fn warn_of_metric(&mut self, at: usize, metric: &str) {
        if KNOWN_METRICS.contains(&metric) {
            return;
        }
        let source = self.source;
        self.findings.warn(|| {
            let nearest = nearest(metric, KNOWN_METRICS);
            let known = KNOWN_METRICS.join(", ");
            let problem = format!(
                "a budget on {metric:?}{nearest}, which is none of the metrics that services are \
                 known to report: {known}"
            );
            Warning { unheard_of: Some(metric.into()), ..source.warning(at, problem) }
        });
    }

    fn organizations(&mut self, written: file::Named<file::Organization>) {
        self.entries.subjects.organizations.reserve(written.len());
        for (name, file::Organization { plan, limits, disabled }) in written {
            let plan = plan.and_then(|plan| self.plan(&plan));
            self.subject(Subject::Organization, &name, plan, &limits, disabled);
        }
    }

    fn api_keys(&mut self, written: file::Named<file::ApiKey>) {
        self.entries.subjects.api_keys.reserve(written.len());
        for (name, file::ApiKey { limits, disabled }) in written {
            self.subject(Subject::ApiKey, &name, None, &limits, disabled);
        }
    }

    fn subject(
        &mut self,
        subject: Subject,
        name: &Spanned<String>,
        plan: Option<usize>,
        limits: &file::ServiceLimits,
        disabled: bool,
    ) {
        let limits = self.limits(limits);
        let entry = SubjectEntry { plan, limits, disabled: disabled.then_some(true) };
        if let Some(name) = self.name(name) {
            self.entries.subjects.of_mut(subject).insert(name, entry);
        }
    }

    /// The position of the plan of that name.
    fn plan(&mut self, plan: &Spanned<String>) -> Option<usize> {
        let (named, plans) = (plan.get_ref(), &self.entries.plans);
        let found = plans.binary_search_by(|plan| (*plan.name).cmp(named)).ok();
        if found.is_none() && !self.removed.has(named) && !self.removed.has("plans") {
            let nearest = nearest(named, plans.iter().map(|plan| &*plan.name));
            self.error(plan.span(), format!("there is no plan {named:?}{nearest}"));
        }
        found
    }

    /// An organization without an entry is a valid default. A name that is similar to that of an entry
    /// is likely a mistake.
    fn default_organization(&mut self, place: Place, named: &str) {
        let organizations = &self.entries.subjects.organizations;
        if organizations.contains_key(named) {
            return;
        }
        let nearest = nearest(named, organizations.keys().map(|name| &**name));
        if !nearest.is_empty() {
            let problem =
                format!("{DEFAULT_ORGANIZATION}: there is no organization {named:?}{nearest}");
            self.findings.warn(|| Warning { place, problem, unheard_of: None });
        }
    }

    fn indexers(&mut self, written: Vec<file::Indexer>, outside: &mut dyn Outside) {
        let mut names = BTreeSet::new();
        for written in written {
            let Some(name) = self.name(&written.name) else { continue };
            if !names.insert(name.clone()) {
                self.error(written.name.span(), format!("a second indexer is named {name:?}"));
            }
            let services = written.services.as_ref();
            let services =
                services.map(|names| names.iter().filter_map(|name| self.service(name)).collect());
            let indexer = self.entries.indexers.add(Indexer { name: name.clone(), services });
            for (digest, place) in self.keys(&written, outside) {
                let Err(other) = self.entries.indexers.add_key(indexer, digest) else { continue };
                let other =
                    self.entries.indexers.iter().nth(other).map_or("another", Indexer::name);
                let problem = format!("a key of indexer {name:?} is a key of {other:?} already");
                let place = place.unwrap_or_else(|| self.source.place(written.name.span().start));
                self.findings.error(PolicyError::new(place, problem));
            }
        }
    }

    /// The digests of the keys of one indexer; a digest from a file has its place there.
    fn keys(
        &mut self,
        written: &file::Indexer,
        outside: &mut dyn Outside,
    ) -> Vec<(Digest, Option<Place>)> {
        let here = written.key_sha256.iter().flat_map(|digests| &digests.0);
        let mut keys: Vec<_> = here.map(|digest| (*digest, None)).collect();
        if let Some(path) = &written.key_sha256_file {
            let source = self.source;
            let place = || source.place(path.span().start);
            // A relative path starts at the folder of the policy file.
            let folder = source.name.parent().unwrap_or(Path::new(""));
            let digests = read_digests(outside, &folder.join(path.get_ref()), place);
            let digests = self.findings.ok_or_record(digests).unwrap_or_default();
            keys.extend(digests.into_iter().map(|(digest, place)| (digest, Some(place))));
        } else if written.key_sha256.is_none()
            && !["key_sha256", "key_sha256_file"].iter().any(|key| self.removed.has(key))
        {
            let problem = "an indexer without a key: add key_sha256 or key_sha256_file";
            self.error(written.name.span(), problem);
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::findings::{MAX_WARNINGS, SCANNED};

    fn parsed(text: &str) -> Parsed {
        Policy::parse(text, "p.toml").unwrap()
    }

    #[test]
    fn a_place_is_given_as_line_and_character() {
        let text = "é = 1\n\nab = 'é'\n";
        let source = SourceText::new(text, Path::new("p.toml"));
        for offset in (0..=text.len()).filter(|offset| text.is_char_boundary(*offset)) {
            let before = &text[..offset];
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
            let place = source.place(offset);
            assert_eq!((place.line, place.column), (line, column), "{offset}");
        }
    }

    #[test]
    fn ten_times_the_services_cause_no_more_scanning_for_places_and_no_more_warnings() {
        let scanned = [2_000, 20_000].map(|services| {
            let mut text = String::new();
            for service in 0..services {
                writeln!(text, "[services.s{service}]\nttl = '30s'").unwrap();
            }
            SCANNED.set(0);
            let warnings = parsed(&text).warnings;
            assert_eq!(warnings.len(), MAX_WARNINGS + 1);
            let more =
                format!("p.toml:1:1: {} more warnings are left out", services - MAX_WARNINGS);
            assert_eq!(warnings.last().unwrap().to_string(), more);
            SCANNED.get()
        });
        assert_eq!(scanned[1], scanned[0], "places are found without looking at the whole file");
    }

    #[test]
    fn an_error_about_an_unknown_service_names_some_services_and_counts_the_others() {
        let mut text = String::new();
        for service in 0..30 {
            writeln!(text, "[services.s{service:02}]").unwrap();
        }
        text += "[plans.pro]\nlimits = { t1r = 1 }\n";
        let error = Policy::parse(&text, "p").unwrap_err();
        assert!(error.problem.ends_with("s18, s19 and 10 more"), "{error}");
    }
}
