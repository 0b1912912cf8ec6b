//! Merges the configuration of a server from flags, variables, the policy file and defaults.

use std::fmt;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use serde::Serialize;
use tgm_session_server::policy::{Place, Warning};
use tgm_session_server::settings::{self, Given, Setting, Shown, Source};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Error, Loaded, NotLoaded, Policy};

use crate::failure::Failure;
use crate::output::{FAINT, NAME, Output, plain, styled};

const ABOUT: &str = "\
Every flag but --print-config has a variable, and all but --config are keys of
the [server] section of the policy file too, with _ for -. A flag takes
precedence over its TGM_SESSION_... variable, then the file, then the default.

  tgm-session serve   loopback, built-in policy, durable store
  tgm-session serve --config policy.toml --listen 0.0.0.0:9010
  tgm-session serve --config policy.toml --tls-cert server.pem \\
        --tls-key server.key
  tgm-session serve --store memory: --listen 127.0.0.1:0 \\
        --admin-listen 127.0.0.1:0

The policy file is checked twice a second, and loaded when it has changed;
SIGHUP loads it at once. An invalid file is refused, and the policy in force
stays. A changed [server] section needs a restart.

SIGTERM or Ctrl-C: calls in flight may finish within 10 s (--drain-timeout),
the store is flushed, exit code 0. A second signal stops the server at once;
nothing that was acknowledged is lost.";

/// Run a session server.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
struct Own {
    /// The policy file, which is loaded again when it changes [default: policy.toml in
    /// $CONFIGURATION_DIRECTORY, else a built-in policy: 10 sessions (t1r) and 100 workers (t2w) per
    /// organization].
    #[arg(long, value_name = "FILE", env = "TGM_SESSION_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Print every setting with its value and where that was given, and start nothing.
    #[arg(long)]
    print_config: bool,
}

/// The path of the policy file, and where the path was given.
#[derive(Clone, Debug)]
pub(super) struct PolicySource {
    path: PathBuf,
    source: Source,
    place: String,
}

impl PolicySource {
    /// The policy in the folder that the service manager gives a service for its configuration, if
    /// there is one in it.
    fn configured() -> Option<Self> {
        let variable = "CONFIGURATION_DIRECTORY";
        let folders = std::env::var_os(variable)?;
        let folders = std::env::split_paths(&folders).filter(|folder| folder.is_absolute());
        let mut files = folders.map(|folder| folder.join("policy.toml"));
        // A file whose existence cannot be checked counts: reading it reports the error.
        let path = files.find(|file| file.try_exists().unwrap_or(true))?;
        Some(Self { path, source: Source::Variable, place: variable.to_owned() })
    }
}

/// The flags of `serve`: its own, and one for each setting of a server.
#[derive(Debug)]
pub(crate) struct Args {
    config: Option<PolicySource>,
    pub(super) print_config: bool,
    /// The settings by flag and variable.
    flags: Flags,
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        Own::augment_args(command).args(flags())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Own::augment_args_for_update(command).args(flags())
    }
}

impl FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let Own { config, print_config } = Own::from_arg_matches(matches)?;
        let config = config.map(|path| {
            let source = source(matches, "config");
            PolicySource { path, place: place("config", &source), source }
        });
        Ok(Self { config, print_config, flags: Flags::of(matches) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The flags of all settings.
pub(crate) fn flags() -> impl Iterator<Item = Arg> {
    settings::all().iter().map(flag)
}

/// The flag and the variable of a setting. The value is parsed later, by code whose errors name the flag
/// or variable and never repeat a secret.
fn flag(setting: &'static Setting) -> Arg {
    let flag = Arg::new(setting.name())
        .long(setting.flag())
        .env(setting.variable())
        .hide_env_values(true)
        .value_name(setting.value_name())
        .help(format!("{} [default: {}]", setting.about(), setting.default_words()))
        .help_heading(setting.group())
        .action(ArgAction::Set);
    if setting.is_switch() {
        flag.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        flag
    }
}

/// Where the value of a flag comes from.
fn source(matches: &ArgMatches, id: &str) -> Source {
    match matches.value_source(id) {
        Some(ValueSource::EnvVariable) => Source::Variable,
        _ => Source::Flag,
    }
}

/// The settings by flag and variable.
#[derive(Clone, Debug)]
pub(crate) struct Flags {
    /// The valid ones.
    given: Given,
    /// The names of the invalid ones, each with its error.
    wrong: Vec<(&'static str, Failure)>,
}

impl Flags {
    pub(crate) fn of(matches: &ArgMatches) -> Self {
        let (mut given, mut wrong) = (Given::default(), Vec::new());
        for setting in settings::all() {
            if let Some(text) = matches.get_one::<String>(setting.name()) {
                let source = source(matches, setting.name());
                let place = place(&setting.flag(), &source);
                if let Err(problem) = given.set(setting, text, source) {
                    let failure = Failure::Usage(format!("{place}: {problem}"));
                    wrong.push((setting.name(), failure));
                }
            }
        }
        Self { given, wrong }
    }
}

/// The place where a value was given, as text.
fn place(flag: &str, source: &Source) -> String {
    match source {
        Source::Flag => format!("--{flag}"),
        Source::Variable => format!("TGM_SESSION_{}", flag.replace('-', "_").to_uppercase()),
        Source::File(place) => place.to_string(),
    }
}

/// A reason why a server does not start.
#[derive(Debug)]
pub(crate) struct Problem {
    /// The place in a file, if there is one.
    pub(crate) place: Option<Place>,
    /// The message without the place.
    pub(crate) problem: String,
    pub(crate) failure: Failure,
}

impl Problem {
    fn new(failure: Failure) -> Self {
        let problem = failure.message().unwrap_or_default().to_owned();
        Self { place: None, problem, failure }
    }

    /// The problems that an error is made of.
    fn each(error: Error) -> Vec<Self> {
        match error {
            Error::Policy(error) => error
                .each()
                .map(|error| Self {
                    place: Some(error.place.clone()),
                    problem: error.problem.clone(),
                    failure: Failure::Usage(error.to_string()),
                })
                .collect(),
            error => vec![Self::new(error.into())],
        }
    }

    /// All of them as one failure.
    pub(crate) fn failure(problems: Vec<Self>) -> Failure {
        let failures = problems.into_iter().map(|problem| problem.failure).collect();
        Failure::of(failures).unwrap_or(Failure::Failed("nothing is wrong".into()))
    }
}

/// The settings whose absence an error is about. If one of them is given and invalid, the error does not
/// hold.
fn may_be_missed(error: &Error) -> &'static [&'static str] {
    match error {
        Error::Anonymous { .. } => &["allow_anonymous"],
        Error::AdminExposed { .. } => &["admin_token", "admin_token_file"],
        Error::Setting { name: "tls_cert", .. } => &["tls_key", "tls_cert", "advertise"],
        Error::Setting { name: "tls_key", .. } => &["tls_cert"],
        Error::Setting { name: "tls_client_ca", .. } => &["tls_cert", "tls_key"],
        Error::Setting { name: "advertise", .. } => &["advertise", "store"],
        Error::Setting { name: "fleet_ca", .. } => &["fleet_ca", "tls_cert", "tls_key", "store"],
        Error::Setting { name: "fleet_cert", .. } => {
            &["fleet_cert", "fleet_key", "fleet_ca", "store"]
        }
        Error::Setting { name: "fleet_key", .. } => &["fleet_cert", "store"],
        Error::Setting { name: "leader_ttl", .. } => &["store"],
        _ => &[],
    }
}

/// What a server is started with.
#[derive(Debug)]
pub(crate) struct Configured {
    pub(crate) config: Config,
    /// Where each part of it was given.
    pub(crate) given: Given,
    /// What the policy file allows but probably does not intend.
    pub(crate) warnings: Vec<Warning>,
}

impl Configured {
    /// Merges flags and variables, the policy file with its settings, and the defaults.
    ///
    /// # Errors
    ///
    /// Every invalid setting and every error of the policy.
    pub(crate) fn new(
        flags: Flags,
        loaded: Result<Loaded, NotLoaded>,
    ) -> Result<Self, Vec<Problem>> {
        let (mut invalid, mut problems) = (Vec::<String>::new(), Vec::new());
        for (name, failure) in flags.wrong {
            invalid.push(name.to_owned());
            problems.push(Problem::new(failure));
        }
        let is_policy_known = loaded.is_ok();
        let loaded = loaded.unwrap_or_else(|NotLoaded { error, server, invalid: more }| {
            invalid.extend(more);
            problems.extend(Problem::each(*error));
            Loaded { policy: Policy::built_in(), server, warnings: Vec::new(), file: None }
        });
        let configured =
            Self::merge(flags.given, loaded, invalid.iter().any(|name| name == "store"));
        if problems.is_empty() {
            return configured;
        }
        // The valid settings are checked too, except for what depends on something invalid.
        match configured {
            Ok(mut configured) => {
                let errors = configured.config.find_errors().into_iter();
                let holds = |error: &Error| {
                    (is_policy_known || !matches!(error, Error::Anonymous { .. }))
                        && !invalid.iter().any(|name| may_be_missed(error).contains(&name.as_str()))
                };
                problems.extend(errors.filter(holds).flat_map(Problem::each));
            }
            Err(more) => problems.extend(more),
        }
        Err(problems)
    }

    fn merge(flags: Given, loaded: Loaded, is_store_wrong: bool) -> Result<Self, Vec<Problem>> {
        let Loaded { policy, server, warnings, file, .. } = loaded;
        let mut config = Config::new(policy, StoreUrl::Memory);
        config.policy_file = file;
        config.given = flags.clone();
        let given = flags.over(server);
        given.apply(&mut config).map_err(Problem::each)?;
        if given.source("store").is_none() && !is_store_wrong {
            config.store = StoreUrl::in_state_folder().ok_or_else(|| {
                vec![Problem::new(Failure::Usage(
                    "there is no state folder, for neither XDG_STATE_HOME nor HOME is an absolute \
                     path; say where leases are kept: --store file:PATH"
                        .into(),
                ))]
            })?;
        }
        Ok(Self { config, given, warnings })
    }

    /// Checks whether a server would start with this configuration.
    ///
    /// # Errors
    ///
    /// Every reason against it that can be known without a start.
    pub(crate) fn judge(&mut self) -> Result<(), Vec<Problem>> {
        let problems: Vec<_> =
            self.config.find_errors().into_iter().flat_map(Problem::each).collect();
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }
}

/// Reads the configuration of `serve`, the source of the policy, and a description of the policy.
///
/// # Errors
///
/// Every invalid setting and every error of the policy.
pub(super) fn configure(
    args: &Args,
) -> Result<(Configured, Option<PolicySource>, String), Failure> {
    let at = args.config.clone().or_else(PolicySource::configured);
    let (loaded, words) = match &at {
        None => {
            let words = "built in: 10 sessions (t1r) and 100 workers (t2w) per organization; \
                         --config FILE for your own";
            let (policy, server) = (Policy::built_in(), Given::default());
            (Ok(Loaded { policy, server, warnings: Vec::new(), file: None }), words.to_owned())
        }
        Some(PolicySource { path, .. }) => (Loaded::load(path), path.display().to_string()),
    };
    let configured = Configured::new(args.flags.clone(), loaded).map_err(Problem::failure)?;
    Ok((configured, at, words))
}

/// One setting, as it is printed.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    name: &'a str,
    value: Shown,
    /// `flag`, `variable`, `file` or `default`.
    source: &'static str,
    /// The flag, the variable, or the line of the file.
    #[serde(rename = "where")]
    place: Option<String>,
    /// How wide names and values are shown.
    #[serde(skip)]
    widths: (usize, usize),
}

impl<'a> Printed<'a> {
    fn new(name: &'a str, flag: &str, value: Shown, source: Option<&Source>) -> Self {
        let place = source.map(|source| place(flag, source));
        let source = match source {
            Some(Source::Flag) => "flag",
            Some(Source::Variable) => "variable",
            Some(Source::File(_)) => "file",
            None => "default",
        };
        Self { name, value, source, place, widths: (0, 0) }
    }
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = self.widths;
        let name = format!("{:<name$}", self.name);
        let value = format!("{:<value$}", self.value.to_string());
        let source = match &self.place {
            Some(place) => format!("{} {}", self.source, plain(place)),
            None => self.source.to_owned(),
        };
        write!(f, "{} = {value}  {}", styled(NAME, name), styled(FAINT, format!("# {source}")))
    }
}

/// Prints every setting of `config`, its value and where it was given. Secrets are masked.
///
/// # Errors
///
/// As [`Output::show`].
pub(super) fn print(
    config: &mut Config,
    given: &Given,
    file: Option<PolicySource>,
    output: &mut Output,
) -> Result<(), Failure> {
    let file = match file {
        None => Printed::new("config", "config", Shown::Nothing, None),
        Some(PolicySource { path, source, place }) => {
            let path = Shown::Text(path.display().to_string());
            let printed = Printed::new("config", "config", path, Some(&source));
            Printed { place: Some(place), ..printed }
        }
    };
    let settings = settings::all().iter().map(|setting| {
        let value = setting.show(config);
        Printed::new(setting.name(), &setting.flag(), value, given.source(setting.name()))
    });
    let mut rows: Vec<_> = std::iter::once(file).chain(settings).collect();
    let widest = |width: fn(&Printed<'_>) -> usize| rows.iter().map(width).max().unwrap_or(0);
    let names = widest(|row| row.name.len());
    // One long path does not widen the column.
    let values = widest(|row| row.value.to_string().chars().count()).min(32);
    for row in &mut rows {
        row.widths = (names, values);
        output.show(row)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn configured(line: &[&str]) -> Result<Config, Failure> {
        let line = Line::try_parse_from(std::iter::once(&"serve").chain(line)).expect("flags");
        configure(&line.args).map(|(configured, ..)| configured.config)
    }

    fn policy_file(server: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("[server]\n{server}\n[services.t1r]\n")).expect("text");
        file
    }

    #[test]
    fn a_flag_overrides_the_file_and_the_file_overrides_the_default() {
        let file = policy_file("listen = '127.0.0.1:1'\nstore = 'memory:'\nmax_leases = 7");
        let path = file.path().to_str().expect("a path");
        let config = configured(&["--config", path, "--listen", "127.0.0.1:2"]).expect("valid");
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.admin_listen.port(), 9011);
        assert_eq!(config.store, StoreUrl::Memory);
        assert_eq!(config.max_leases, 7);
    }

    #[test]
    fn a_flag_can_disable_what_the_file_allows() {
        let file = policy_file("allow_anonymous = true\nstore = 'memory:'");
        let path = file.path().to_str().expect("a path");
        let allowed = |line: &[&str]| configured(line).expect("valid").allow_anonymous;
        assert!(allowed(&["--config", path]));
        assert!(!allowed(&["--config", path, "--allow-anonymous=false"]));
        assert!(allowed(&["--store", "memory:", "--allow-anonymous"]));
        assert!(!allowed(&["--store", "memory:"]));
    }

    #[test]
    fn the_admin_token_is_never_shown() {
        let line = Line::try_parse_from(["serve", "--admin-token", "s3cret"]).expect("flags");
        assert!(!format!("{:?}", line.args).contains("s3cret"));
        let failure = configured(&["--admin-token", ""]).expect_err("an empty token");
        assert!(matches!(failure, Failure::Usage(problem) if problem.starts_with("--admin-token")));
    }
}
