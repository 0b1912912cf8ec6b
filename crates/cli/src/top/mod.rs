//! `top`: a live view of organizations and their sessions.

mod draw;
mod fetch;
mod keys;
mod organizations;
mod parts;
mod plain;
mod screen;
mod sessions;
mod state;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use tgm_session_server::api::Done;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::MissedTickBehavior;

use self::fetch::Update;
use self::keys::Action;
use self::screen::Screen;
use self::state::App;
use crate::failure::Failure;
use crate::operator::admin::{Admin, AdminArgs, Fault};
use crate::output::Output;
use crate::runtime;
use crate::signals::Signals;

const ABOUT: &str = "\
Examples:
  tgm-session top
  tgm-session top --admin http://10.0.0.5:9011
      with TGM_SESSION_ADMIN_TOKEN set
  tgm-session top | head
      a plain table, once
  tgm-session top --format json
      one value: overview and organizations, once

Keys: arrows select, Enter shows the sessions of an organization, Esc goes
back, / searches, s sorts, r ends a session after a confirmation, ? shows all
keys, q quits.";

/// How often the server is asked whether something has changed.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// The age at which a list is fetched again although nothing has changed: refusals leave the last hour.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Watch organizations live: their sessions, budgets and refusals.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    #[command(flatten)]
    admin: AdminArgs,
}

/// Runs the command.
pub(crate) fn run(args: &Args, mut output: Output) -> Result<(), Failure> {
    let admin = Admin::new(&args.admin)?;
    if !output.is_live() || !std::io::stdin().is_terminal() {
        return plain::show(&admin, &mut output);
    }
    output.show_live(&"asking the server…")?;
    let mut app = App::new(admin.place());
    // A server that cannot be reached, or a wrong token, is an error and not an empty screen.
    app.update(fetch::fetch(&admin, app.query(), None)?, Instant::now());
    output.clear_live()?;
    let runtime = runtime::current_thread()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::take_with_hangup()?;
        let mut screen = Screen::enter()?;
        watch(&admin, &mut app, &mut screen, &mut signals).await
    });
    // Does not wait for a call in flight.
    runtime.shutdown_background();
    outcome
}

/// Draws the screen, handles keys and fetches updates until the user quits.
async fn watch(
    admin: &Admin,
    app: &mut App,
    screen: &mut Screen,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let mut events = EventStream::new();
    let mut ticks = tokio::time::interval(REFRESH_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fetching: Option<JoinHandle<Result<Update, Failure>>> = None;
    let mut ending: Option<JoinHandle<Result<Done, Fault>>> = None;
    loop {
        screen.draw(app)?;
        let mut refresh = false;
        tokio::select! {
            _ = signals.next() => return Ok(()),
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => match app.press(key) {
                    Action::Nothing => refresh = app.needs_list(),
                    Action::Quit => return Ok(()),
                    Action::Revoke(_) if ending.is_some() => app.refuse_second_revocation(),
                    Action::Revoke(lease) => {
                        let admin = admin.clone();
                        let revoke = move || admin.revoke(&lease, "from the terminal view");
                        ending = Some(tokio::task::spawn_blocking(revoke));
                    }
                },
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    return Err(Failure::Failed(format!("cannot read the keyboard: {error}")));
                }
                None => return Ok(()),
            },
            _ = ticks.tick() => refresh = true,
            update = end_of(&mut fetching) => {
                match update? {
                    Ok(update) => app.update(update, Instant::now()),
                    Err(failure) => app.mark_lost(failure, Instant::now()),
                }
                refresh = app.needs_list() && app.is_connected();
            }
            done = end_of(&mut ending) => {
                app.ended(done?);
                refresh = true;
            }
        }
        if refresh && fetching.is_none() {
            let (admin, want) = (admin.clone(), app.query());
            let known = app.known_revision(Instant::now(), MAX_AGE);
            fetching = Some(tokio::task::spawn_blocking(move || fetch::fetch(&admin, want, known)));
        }
    }
}

/// Waits for the end of a task; forever if there is none. Cancellation safe.
async fn end_of<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, Failure> {
    let Some(running) = task else { return std::future::pending().await };
    let outcome = running.await;
    *task = None;
    outcome.map_err(|error: JoinError| Failure::Failed(format!("a call broke off: {error}")))
}
