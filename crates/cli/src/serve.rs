//! `serve`: run a session server until it is asked to stop.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ArgAction;
use serde::Serialize;
use tgm_session_server::operator::By;
use tgm_session_server::policy::{Loaded, ServerSection};
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{AdminToken, Config, Policy, Running, Server};

use crate::failure::Failure;
use crate::output::{FAINT, GOOD, NAME, Output, styled};
use crate::signals::{Hangups, Signals};

const ABOUT: &str = "\
Every flag has a variable, and all but the token and --config stand in the [server] section of the
policy file too. The order is: flag, TGM_SESSION_... variable, file, default.

  tgm-session serve                                    loopback, built-in policy, durable store
  tgm-session serve --config policy.toml --listen 0.0.0.0:9010
  tgm-session serve --store memory: --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0

The policy file is looked at twice a second, and loaded when it changes; SIGHUP loads it at once. One
that is not sound is refused, and the policy in force stays. A changed [server] section needs a restart.

SIGTERM or Ctrl-C: calls under way may finish for 10 s, the store is flushed, exit code 0. A second
signal stops at once; nothing that was acknowledged is lost.";

/// Run a session server.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The policy file [default: a built-in policy: 10 sessions (t1r) and 100 workers (t2w) per
    /// organization].
    #[arg(long, value_name = "FILE", env = "TGM_SESSION_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Where gRPC is served; port 0 takes a free one [default: 127.0.0.1:9010].
    #[arg(long, value_name = "ADDR", env = "TGM_SESSION_LISTEN", hide_env_values = true, value_parser = address)]
    listen: Option<SocketAddr>,

    /// Where probes and metrics are served [default: 127.0.0.1:9011].
    #[arg(long, value_name = "ADDR", env = "TGM_SESSION_ADMIN_LISTEN", hide_env_values = true, value_parser = address)]
    admin_listen: Option<SocketAddr>,

    /// The bearer token of the admin port, needed off loopback; better given by its
    /// variable, for others can read a command line [default: none].
    #[arg(
        long,
        value_name = "TOKEN",
        env = "TGM_SESSION_ADMIN_TOKEN",
        hide_env_values = true,
        value_parser = admin_token
    )]
    admin_token: Option<AdminToken>,

    /// Where leases are kept: memory: or file:PATH [default: a file in the state folder,
    /// $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, value_name = "URL", env = "TGM_SESSION_STORE", hide_env_values = true)]
    store: Option<String>,

    /// Serve callers that show no key off loopback too [default: false].
    #[arg(
        long,
        value_name = "BOOL",
        env = "TGM_SESSION_ALLOW_ANONYMOUS",
        hide_env_values = true,
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    allow_anonymous: Option<bool>,

    /// The most leases held at once, whatever the policy allows [default: 2000000].
    #[arg(long, value_name = "N", env = "TGM_SESSION_MAX_LEASES", hide_env_values = true)]
    max_leases: Option<u64>,

    /// The most gRPC connections held at once; more wait [default: 16384].
    #[arg(long, value_name = "N", env = "TGM_SESSION_MAX_CONNECTIONS", hide_env_values = true)]
    max_connections: Option<u32>,

    /// How many threads serve gRPC [default: one per core].
    #[arg(long, value_name = "N", env = "TGM_SESSION_THREADS", hide_env_values = true)]
    threads: Option<u16>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an address and a port, like 127.0.0.1:9010 or [::1]:9010".into())
}

fn admin_token(text: &str) -> Result<AdminToken, String> {
    if text.is_empty() {
        Err("an empty token protects nothing".into())
    } else {
        Ok(AdminToken::new(text))
    }
}

/// What a server says once it accepts.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "ready")]
struct Ready {
    grpc: SocketAddr,
    admin: SocketAddr,
    store: String,
    policy: String,
    recovered_leases: usize,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        writeln!(f, "{} tgm-session {version} accepts calls", styled(GOOD, "ready"))?;
        let url = styled(NAME, format_args!("tgm://{}?plaintext=true", self.grpc));
        writeln!(f, "  sessions  {url}")?;
        writeln!(f, "  metrics   http://{}/metrics", self.admin)?;
        writeln!(f, "  policy    {}", self.policy)?;
        let kept = match self.recovered_leases {
            0 => "no leases from before".to_owned(),
            1 => "1 lease from before".to_owned(),
            leases => format!("{leases} leases from before"),
        };
        writeln!(f, "  store     {} {}", self.store, styled(FAINT, format_args!("({kept})")))?;
        write!(f, "{}", styled(FAINT, "Ctrl-C stops it; leases are kept for the next start."))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, mut output: Output) -> Result<(), Failure> {
    let (config, policy) = configuration(args)?;
    let store = config.store.to_string();
    crate::runtime()?.block_on(async {
        let mut signals = Signals::take()?;
        let mut hangups = Hangups::take()?;
        let server = Server::bind(config).await?;
        let recovered_leases = server.recovered_leases();
        let running = server.start().await?;
        let (grpc, admin) = (running.grpc_address(), running.admin_address());
        match output.show(&Ready { grpc, admin, store, policy, recovered_leases }) {
            // A server serves, whoever reads about it.
            Err(Failure::NobodyReads) | Ok(()) => {}
            Err(failure) => tracing::warn!("{}", failure.message().unwrap_or_default()),
        }
        let signal = loop {
            tokio::select! {
                signal = signals.next() => break signal,
                () = hangups.next() => {
                    // What came of it is in the log, and in the status of the policy.
                    let by = By { from: "signal", note: "" };
                    let _: Result<_, _> = running.operator().reload(by).await;
                }
            }
        };
        tracing::info!(signal, "stopping: calls under way may finish");
        stop(running, signals).await
    })
}

/// Stops well, or at once when a second signal comes.
async fn stop(running: Running, mut signals: Signals) -> Result<(), Failure> {
    tokio::select! {
        stopped = running.stop() => {
            stopped?;
            tracing::info!("stopped");
            Ok(())
        }
        signal = signals.next() => {
            tracing::warn!(signal, "stopped at once; what was acknowledged is kept");
            std::process::exit(1)
        }
    }
}

/// Puts flags, variables, file and defaults together, and says in words which policy that is.
fn configuration(args: Args) -> Result<(Config, String), Failure> {
    let (policy, file, policy_file, words) = match &args.config {
        None => {
            let words = "built in: 10 sessions (t1r) and 100 workers (t2w) per organization; \
                         --config FILE for your own";
            (Policy::built_in(), ServerSection::default(), None, words.to_owned())
        }
        Some(path) => {
            let Loaded { policy, server, warnings, file, .. } = Policy::load(path)?;
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            (policy, server, file, path.display().to_string())
        }
    };
    let store = match args.store.or(file.store) {
        Some(url) => url.parse()?,
        None => StoreUrl::in_state_folder().ok_or_else(|| {
            Failure::Usage(
                "there is no state folder, for neither XDG_STATE_HOME nor HOME is an absolute \
                 path; say where leases are kept: --store file:PATH"
                    .into(),
            )
        })?,
    };
    let mut config = Config::new(policy, store);
    config.policy_file = policy_file;
    config.admin_token = args.admin_token;
    set(&mut config.listen, args.listen.or(file.listen));
    set(&mut config.admin_listen, args.admin_listen.or(file.admin_listen));
    set(&mut config.allow_anonymous, args.allow_anonymous.or(file.allow_anonymous));
    set(&mut config.max_leases, args.max_leases.or(file.max_leases));
    set(&mut config.max_connections, args.max_connections.or(file.max_connections));
    set(&mut config.threads, args.threads.or(file.threads).map(usize::from));
    Ok((config, words))
}

fn set<T>(place: &mut T, given: Option<T>) {
    if let Some(value) = given {
        *place = value;
    }
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
        configuration(line.args).map(|(config, _)| config)
    }

    fn policy_file(server: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("[server]\n{server}\n[services.t1r]\n")).expect("text");
        file
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = policy_file("listen = '127.0.0.1:1'\nstore = 'memory:'\nmax_leases = 7");
        let path = file.path().to_str().expect("a path");
        let config = configured(&["--config", path, "--listen", "127.0.0.1:2"]).expect("sound");
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.admin_listen.port(), 9011);
        assert_eq!(config.store, StoreUrl::Memory);
        assert_eq!(config.max_leases, 7);
    }

    #[test]
    fn a_flag_can_take_back_what_the_file_allows() {
        let file = policy_file("allow_anonymous = true\nstore = 'memory:'");
        let path = file.path().to_str().expect("a path");
        let allowed = |line: &[&str]| configured(line).expect("sound").allow_anonymous;
        assert!(allowed(&["--config", path]));
        assert!(!allowed(&["--config", path, "--allow-anonymous=false"]));
        assert!(allowed(&["--store", "memory:", "--allow-anonymous"]));
        assert!(!allowed(&["--store", "memory:"]));
    }

    #[test]
    fn the_admin_token_is_never_shown() {
        let line = Line::try_parse_from(["serve", "--admin-token", "s3cret"]).expect("flags");
        assert!(!format!("{:?}", line.args).contains("s3cret"));
        assert!(Line::try_parse_from(["serve", "--admin-token", ""]).is_err());
    }
}
