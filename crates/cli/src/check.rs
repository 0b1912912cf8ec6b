//! `check`: says whether a server would start with a policy file, and summarizes the file.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgMatches, Command, FromArgMatches};
use serde::Serialize;
use tgm_session_server::policy::{self, Place, Summary, Warning};
use tgm_session_server::settings::{Given, Source, worst_memory};
use tgm_session_server::{Config, Loaded, NotLoaded};

use crate::failure::Failure;
use crate::machine;
use crate::output::{FAINT, GOOD, Output, WARN, counted, styled};
use crate::serve::settings::{self, Configured, Problem};

const ABOUT: &str = "\
Refuses what serve would refuse, in the same words, and lists every error with
its line; exit code 2. It takes the flags of serve and its TGM_SESSION_...
variables too, and reads the files of TLS, tokens and keys. Only a start can
know whether a port is free and the store opens. A warning is about something
that is valid but probably a mistake; exit code 0. It also warns if max_leases
may need more memory than this machine, or its control group, has.

  tgm-session check policy.toml
  tgm-session check policy.toml --listen 0.0.0.0:9010
  tgm-session check - <policy.toml
  tgm-session check policy.toml --format json";

/// The largest policy that is read from standard input.
const MAX_INPUT: u64 = 64 << 20;

/// Check whether a server would start with a policy file, and summarize the file.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
struct Own {
    /// The policy file; - is standard input.
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
}

/// The policy file, and the flags of `serve`.
#[derive(Debug)]
pub(crate) struct Args {
    config: PathBuf,
    flags: settings::Flags,
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        Own::augment_args(command).args(settings::flags().map(|flag| flag.hide(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Own { config } = Own::from_arg_matches(matches)?;
        Ok(Self { config, flags: settings::Flags::of(matches) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A valid policy file, as it is printed.
#[derive(Debug, Serialize)]
struct Valid<'a> {
    file: &'a Path,
    ok: bool,
    services: Vec<Service<'a>>,
    plans: usize,
    organizations: usize,
    disabled_organizations: usize,
    api_keys: usize,
    disabled_api_keys: usize,
    indexers: usize,
    max_leases: u64,
    /// The memory that `max_leases` leases need with the longest ids.
    worst_memory_bytes: u64,
    /// The memory of this machine.
    memory_bytes: Option<u64>,
    warnings: Vec<Finding<'a>>,
}

#[derive(Debug, Serialize)]
struct Service<'a> {
    name: &'a str,
    max_per_organization: Option<u64>,
    max_per_api_key: Option<u64>,
    max_total: Option<u64>,
    ttl_ms: u128,
    minimal_life_ms: u128,
    observe: bool,
}

/// A warning about one place of the file.
#[derive(Debug, Serialize)]
struct Finding<'a> {
    line: usize,
    column: usize,
    problem: &'a str,
}

/// An invalid policy file, for programs; people get the error line.
#[derive(Debug, Serialize)]
struct Invalid<'a> {
    file: &'a Path,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    problem: &'a str,
    /// All errors, the first one again.
    errors: Vec<ErrorRow<'a>>,
}

/// One error.
#[derive(Debug, Serialize)]
struct ErrorRow<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    problem: &'a str,
}

impl<'a> From<&'a Problem> for ErrorRow<'a> {
    fn from(problem: &'a Problem) -> Self {
        let place = problem.place.as_ref();
        Self {
            file: place.map(|place| &*place.file),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            problem: &problem.problem,
        }
    }
}

impl<'a> Finding<'a> {
    fn new(Place { line, column, .. }: &Place, problem: &'a str) -> Self {
        Self { line: *line, column: *column, problem }
    }
}

impl<'a> From<&'a policy::Service> for Service<'a> {
    fn from(service: &'a policy::Service) -> Self {
        Self {
            name: &service.name,
            max_per_organization: service.limits.organization,
            max_per_api_key: service.limits.api_key,
            max_total: service.limits.service,
            ttl_ms: service.ttl.as_millis(),
            minimal_life_ms: service.minimal_life.as_millis(),
            observe: service.observe,
        }
    }
}

impl<'a> Valid<'a> {
    fn new(file: &'a Path, summary: Summary<'a>, config: &Config, warnings: &'a [Warning]) -> Self {
        Self {
            file,
            ok: true,
            services: summary.services.iter().map(Service::from).collect(),
            plans: summary.plans,
            organizations: summary.organizations,
            disabled_organizations: summary.disabled_organizations,
            api_keys: summary.api_keys,
            disabled_api_keys: summary.disabled_api_keys,
            indexers: summary.indexers,
            max_leases: config.max_leases,
            worst_memory_bytes: worst_memory(config.max_leases, config.max_id_bytes),
            memory_bytes: machine::memory(),
            warnings: warnings.iter().map(|w| Finding::new(&w.place, &w.problem)).collect(),
        }
    }
}

impl fmt::Display for Valid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        for Finding { line, column, problem } in &self.warnings {
            writeln!(f, "{} {file}:{line}:{column}: {problem}", styled(WARN, "warning:"))?;
        }
        writeln!(f, "{} {file}", styled(GOOD, "valid"))?;
        let width = self.services.iter().map(|service| service.name.chars().count()).max();
        let width = width.unwrap_or(0).max("service".len());
        let heading = format!(
            "  {:<width$}  {:>16}  {:>11}  {:>9}  {:>7}  {:>12}",
            "service", "per organization", "per API key", "in total", "TTL", "minimal life"
        );
        writeln!(f, "{}", styled(FAINT, heading))?;
        for service in &self.services {
            writeln!(
                f,
                "  {:<width$}  {:>16}  {:>11}  {:>9}  {:>7}  {:>12}{}",
                service.name,
                limit(service.max_per_organization),
                limit(service.max_per_api_key),
                limit(service.max_total),
                span(service.ttl_ms),
                span(service.minimal_life_ms),
                if service.observe { "  observed only" } else { "" }
            )?;
        }
        let disabled = |count| match count {
            0 => String::new(),
            count => format!(" ({count} disabled)"),
        };
        write!(
            f,
            "  {}, {}{}, {}{}, {}",
            counted(self.plans as u64, "plan"),
            counted(self.organizations as u64, "organization"),
            disabled(self.disabled_organizations),
            counted(self.api_keys as u64, "API key"),
            disabled(self.disabled_api_keys),
            counted(self.indexers as u64, "indexer"),
        )?;
        if self.indexers == 0 {
            write!(f, ": callers show no key, so serve it on loopback or add [[indexers]]")?;
        }
        let (leases, worst) = (self.max_leases, mebibytes(self.worst_memory_bytes));
        write!(f, "\n  {leases} leases (max_leases) need {worst} of memory at worst")?;
        match self.memory_bytes {
            Some(memory) => write!(f, "; this machine has {}", mebibytes(memory)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Invalid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.problem)
    }
}

fn limit(max: Option<u64>) -> String {
    max.map_or_else(|| "none".to_owned(), |max| max.to_string())
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// The warning that `max_leases` may need more memory than this machine has.
fn memory_warning(file: &Path, given: &Given, config: &Config) -> Option<Warning> {
    let worst = worst_memory(config.max_leases, config.max_id_bytes);
    let memory = machine::memory().filter(|memory| worst > *memory)?;
    let place = match given.source("max_leases") {
        Some(Source::File(place)) => place.clone(),
        _ => Place { file: file.to_owned(), line: 1, column: 1 },
    };
    let problem = format!(
        "max_leases = {} leases need {} of memory at worst, and this machine has {}",
        config.max_leases,
        mebibytes(worst),
        mebibytes(memory)
    );
    Some(Warning { place, problem, unheard_of: None })
}

fn span(milliseconds: u128) -> String {
    let span = Duration::from_millis(u64::try_from(milliseconds).unwrap_or(u64::MAX));
    format!("{span:?}")
}

/// Runs the command.
pub(crate) fn run(args: Args, mut output: Output) -> Result<(), Failure> {
    let Args { config: file, flags } = args;
    let loaded = if file == Path::new("-") { load_standard_input()? } else { Loaded::load(&file) };
    let configured = Configured::new(flags, loaded);
    let judged = configured.and_then(|mut configured| configured.judge().map(|()| configured));
    match judged {
        Ok(Configured { config, given, mut warnings }) => {
            warnings.extend(memory_warning(&file, &given, &config));
            let summary = config.policy.summary();
            output.show(&Valid::new(&file, summary, &config, &warnings))
        }
        Err(problems) => {
            if output.is_json() {
                let errors: Vec<_> = problems.iter().map(ErrorRow::from).collect();
                let Some(&ErrorRow { line, column, problem, .. }) = errors.first() else {
                    return Err(Problem::failure(problems));
                };
                output.show(&Invalid { file: &file, ok: false, line, column, problem, errors })?;
            }
            Err(Problem::failure(problems))
        }
    }
}

/// Reads the policy that comes on standard input.
fn load_standard_input() -> Result<Result<Loaded, NotLoaded>, Failure> {
    let mut text = String::new();
    let failed = |problem: String| Failure::Usage(format!("cannot read standard input: {problem}"));
    let input = std::io::stdin().lock().take(MAX_INPUT + 1);
    { input }.read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > MAX_INPUT {
        return Err(failed(format!("there are more than {MAX_INPUT} bytes")));
    }
    Ok(Loaded::parse(&text, "-"))
}
