//! `serve`: runs a session server until a signal stops it.

#[cfg(target_os = "linux")]
mod manager;
#[cfg(not(target_os = "linux"))]
#[path = "serve/no_manager.rs"]
mod manager;
pub(crate) mod settings;

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;
use tgm_session_server::operator::By;
use tgm_session_server::settings::most_open_files;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Running, Server};

use crate::failure::Failure;
use crate::logs;
use crate::machine;
use crate::output::{FAINT, GOOD, NAME, Output, styled};
use crate::runtime;
use crate::signals::{Hangups, Signals};
pub(crate) use settings::Args;
use settings::{Configured, Problem};

/// Printed when the server accepts calls.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename = "ready")]
struct Ready {
    grpc: SocketAddr,
    tls: bool,
    admin: SocketAddr,
    store: String,
    policy: String,
    recovered_leases: usize,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = env!("CARGO_PKG_VERSION");
        writeln!(f, "{} tgm-session {version} accepts calls", styled(GOOD, "ready"))?;
        let how = if self.tls { "" } else { "?plaintext=true" };
        let url = styled(NAME, format_args!("tgm://{}{how}", self.grpc));
        writeln!(f, "  sessions  {url}")?;
        let page = styled(NAME, format_args!("http://{}/", self.admin));
        writeln!(f, "  operator  {page} {}", styled(FAINT, "(the page; /metrics, /api)"))?;
        writeln!(f, "  policy    {}", self.policy)?;
        let kept = match self.recovered_leases {
            0 => "no leases from before".to_owned(),
            1 => "1 lease from before".to_owned(),
            leases => format!("{leases} leases from before"),
        };
        writeln!(f, "  store     {} {}", self.store, styled(FAINT, format_args!("({kept})")))?;
        let stopped = if self.store == StoreUrl::Memory.to_string() {
            "Ctrl-C stops it; the store is in memory, so nothing is kept."
        } else {
            "Ctrl-C stops it; leases are kept for the next start."
        };
        write!(f, "{}", styled(FAINT, stopped))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args, mut output: Output) -> Result<(), Failure> {
    let (mut configured, file, policy) = settings::configure(&args)?;
    // The server itself warns about metrics, because it knows which are reported.
    for warning in configured.warnings.iter().filter(|warning| warning.unheard_of.is_none()) {
        tracing::warn!("{warning}");
    }
    if args.print_config {
        let Configured { mut config, given, .. } = configured;
        return settings::print(&mut config, &given, file, &mut output);
    }
    configured.judge().map_err(Problem::failure)?;
    let Configured { mut config, .. } = configured;
    make_room_for_files(&config);
    config.dropped_log_lines = logs::dropped();
    let store = config.store.to_string();
    let tls = config.tls.certificate.is_some();
    runtime::current_thread()?.block_on(async {
        let mut signals = Signals::take()?;
        let mut hangups = Hangups::take()?;
        let starting = async {
            let server = Server::bind(config).await?;
            let recovered_leases = server.recovered_leases();
            Ok::<_, Failure>((server.start().await?, recovered_leases))
        };
        let (running, recovered_leases) = tokio::select! {
            started = starting => started?,
            signal = signals.next() => {
                // Nothing was accepted yet. A clean end could wait forever for a disk that hangs.
                tracing::info!(signal, "stopped before it accepted calls");
                std::process::exit(0)
            }
        };
        let (grpc, admin) = (running.grpc_address(), running.admin_address());
        say_ready(Ready { grpc, tls, admin, store, policy, recovered_leases }, output)?;
        let status = format!("gRPC on {grpc}, the admin port on {admin}");
        manager::ready(&status);
        let signal = tokio::select! {
            signal = wait_for_stop(&running, &mut signals, &mut hangups, &status) => signal,
            never = manager::feed_watchdog(&running) => match never {},
        };
        manager::stopping();
        if let Some(signal) = signal {
            tracing::info!(signal, "stopping: calls in flight may finish");
        }
        stop(running, signals).await
    })
}

/// Raises the limit of open files as far as the system allows, and warns if connections may need more.
fn make_room_for_files(config: &Config) {
    let (needed, allowed) = (most_open_files(config), machine::allow_open_files());
    if let Some(allowed) = allowed.filter(|allowed| *allowed < needed) {
        let most = config.max_connections;
        tracing::warn!(
            allowed,
            needed,
            "max_connections ({most}) needs more open files than the system allows this process: \
             raise the hard limit of open files, or lower max_connections"
        );
    }
}

/// Prints that the server accepts calls. It prints on a thread of its own, because a full pipe must not
/// block the server.
fn say_ready(ready: Ready, mut output: Output) -> Result<(), Failure> {
    let say = move || match output.show(&ready) {
        Err(Failure::OutputClosed) | Ok(()) => {}
        Err(failure) => tracing::warn!("{}", failure.message().unwrap_or_default()),
    };
    let started = std::thread::Builder::new().name("ready".into()).spawn(say);
    let failed = |error| Failure::Failed(format!("cannot start a thread: {error}"));
    started.map(drop).map_err(failed)
}

/// Loads the policy again at each SIGHUP. Returns the signal that stops the server; `None` when the store
/// has failed.
async fn wait_for_stop(
    running: &Running,
    signals: &mut Signals,
    hangups: &mut Hangups,
    status: &str,
) -> Option<&'static str> {
    let useless = running.useless();
    tokio::pin!(useless);
    loop {
        tokio::select! {
            signal = signals.next() => return Some(signal),
            () = &mut useless => {
                tracing::error!("the store failed: another server of the fleet takes over");
                return None;
            }
            () = hangups.next() => {
                manager::reloading();
                // The log and the status of the policy have the result.
                let by = By { from: "signal", note: "" };
                let _: Result<_, _> = running.operator().reload(by).await;
                manager::ready(status);
            }
        }
    }
}

/// Stops gracefully, or at once after a second signal.
async fn stop(running: Running, mut signals: Signals) -> Result<(), Failure> {
    tokio::select! {
        stopped = running.stop() => {
            stopped?;
            tracing::info!("stopped");
            Ok(())
        }
        signal = signals.next() => {
            tracing::warn!(signal, "stopped at once; nothing that was acknowledged is lost");
            logs::flush();
            std::process::exit(1)
        }
    }
}
