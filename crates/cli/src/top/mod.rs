//! `top`: who holds what, live.

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
back, / searches, s sorts, r ends a session after a question, ? tells them
all, q quits.";

/// How often the server is asked whether something changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How old a list may become while nothing changed: the refusals of the last hour change by themselves.
const OLDEST: Duration = Duration::from_secs(5);

/// Watch who holds what, live: organizations, their sessions, budgets and refusals.
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
    // A server that cannot be had, or a wrong token, is an error and not an empty screen.
    app.update(fetch::fetch(&admin, app.want(), None)?, Instant::now());
    output.clear_live()?;
    let runtime = runtime::current_thread()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::take_with_hangup()?;
        let mut screen = Screen::enter()?;
        watch(&admin, &mut app, &mut screen, &mut signals).await
    });
    // A call under way is not worth waiting for.
    runtime.shutdown_background();
    outcome
}

/// Draws, listens and asks, until somebody quits.
async fn watch(
    admin: &Admin,
    app: &mut App,
    screen: &mut Screen,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let mut events = EventStream::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looking: Option<JoinHandle<Result<Update, Failure>>> = None;
    let mut ending: Option<JoinHandle<Result<Done, Fault>>> = None;
    loop {
        screen.draw(app)?;
        let mut look = false;
        tokio::select! {
            _ = signals.next() => return Ok(()),
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => match app.press(key) {
                    Action::Nothing => look = app.needs_list(),
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
            _ = ticks.tick() => look = true,
            news = end_of(&mut looking) => {
                match news? {
                    Ok(news) => app.update(news, Instant::now()),
                    Err(failure) => app.mark_lost(failure, Instant::now()),
                }
                look = app.needs_list() && app.is_connected();
            }
            done = end_of(&mut ending) => {
                app.ended(done?);
                look = true;
            }
        }
        if look && looking.is_none() {
            let (admin, want) = (admin.clone(), app.want());
            let known = app.known_revision(Instant::now(), OLDEST);
            looking = Some(tokio::task::spawn_blocking(move || fetch::fetch(&admin, want, known)));
        }
    }
}

/// Waits for the end of a task, for ever when there is none. Cancellation safe.
async fn end_of<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, Failure> {
    let Some(running) = task else { return std::future::pending().await };
    let outcome = running.await;
    *task = None;
    outcome.map_err(|error: JoinError| Failure::Failed(format!("a call broke off: {error}")))
}
