//! `tgm-session`: the session server and the tools around it, in one binary.

mod bar;
mod borrow;
mod check;
mod completions;
#[cfg(unix)]
mod demo;
mod failure;
mod logs;
mod machine;
mod man;
mod operator;
mod output;
mod remote;
mod runtime;
mod serve;
mod signals;
mod state;
mod store;
mod top;

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use tgm_session_server::text::{is_plain, plain_but};

use crate::failure::Failure;
use crate::logs::Logs;
use crate::operator::{
    audit, disable, fleet, limit, organizations, policy, refusals, revoke, sessions,
};
use crate::output::{Format, Output};

/// A faster allocator saves a few percent of CPU with many small requests.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
Start here:
  tgm-session demo    see it work, in 10 seconds
  tgm-session serve   a server on this machine, no configuration
  tgm-session borrow 'tgm://127.0.0.1:9010?plaintext=true' --organization acme
  tgm-session state  'tgm://127.0.0.1:9010?plaintext=true' --organization acme

For the operator of a server, over its admin port (http://127.0.0.1:9011, or
TGM_SESSION_ADMIN_URL):
  tgm-session top
      organizations and sessions, live
  tgm-session refusals --organization acme
      why it was refused
  tgm-session limit organization acme t1r 40
      raise a limit, without a restart
  tgm-session revoke --organization acme
      end its sessions

Exit codes: 0 done, 1 failed (also a port or a store that is in use), 2 an
invalid flag, URL or policy, 3 refused (a limit, a budget, a revocation), 4
the server is unavailable.";

/// Sessions and quotas for streaming data services: who may run how many streams and workers.
#[derive(Debug, Parser)]
#[command(name = "tgm-session", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,

    /// How data is printed: text for people, or JSON, one value per line.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "TGM_SESSION_FORMAT",
        hide_env_values = true,
        help_heading = "Output"
    )]
    format: Format,

    #[command(flatten)]
    logs: Logs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::Args>),
    #[cfg(unix)]
    Demo(demo::Args),
    Borrow(borrow::Args),
    State(state::Args),
    Check(check::Args),
    Top(top::Args),
    Sessions(sessions::Args),
    Organizations(organizations::Args),
    Refusals(refusals::Args),
    Revoke(revoke::Args),
    Disable(disable::Disable),
    Enable(disable::Enable),
    Limit(limit::Args),
    Policy(policy::Show),
    Reload(policy::Reload),
    Audit(audit::Args),
    Fleet(fleet::Show),
    StepDown(fleet::StepDown),
    Store(store::Args),
    Completions(completions::Args),
    Man(man::Args),
}

fn main() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version come as an error too. A failure to print them is ignored.
            let text = answer.to_string();
            if !answer.use_stderr() || text.chars().all(|char| char == '\n' || is_plain(char)) {
                let _ = answer.print();
            } else {
                // The message repeats an argument, which may be an id of somebody else.
                let text = plain_but(&text, |char| char == '\n');
                let _ = std::io::stderr().write_all(text.as_bytes());
            }
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(1));
        }
    };
    let log_format = cli.logs.format();
    let code = match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            logs::show_errors(log_format, &failure.messages());
            failure.exit_code()
        }
    };
    logs::flush();
    code
}

/// Reads the command line and the variables.
fn parse() -> Result<Cli, clap::Error> {
    let mut command = without_empty_variables(Cli::command());
    let mut matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// Lets a variable that is empty count as one that is not set: compose files and units set them so.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| match arg.get_env().is_some_and(is_empty) {
        true => arg.env(Resettable::Reset),
        false => arg,
    });
    command.mut_subcommands(without_empty_variables)
}

fn run(cli: Cli) -> Result<(), Failure> {
    cli.logs.start(matches!(cli.command, Command::Serve(_)))?;
    let output = Output::new(cli.format);
    match cli.command {
        Command::Serve(args) => serve::run(*args, output),
        #[cfg(unix)]
        Command::Demo(args) => demo::run(&args, output),
        Command::Borrow(args) => borrow::run(args, output),
        Command::State(args) => state::run(args, output),
        Command::Check(args) => check::run(args, output),
        Command::Top(args) => top::run(&args, output),
        Command::Sessions(args) => sessions::run(&args, output),
        Command::Organizations(args) => organizations::run(args, output),
        Command::Refusals(args) => refusals::run(args, output),
        Command::Revoke(args) => revoke::run(&args, output),
        Command::Disable(args) => disable::disable(&args, output),
        Command::Enable(args) => disable::enable(&args, output),
        Command::Limit(args) => limit::run(&args, output),
        Command::Policy(args) => policy::show(&args, output),
        Command::Reload(args) => policy::reload(&args, output),
        Command::Audit(args) => audit::run(&args, output),
        Command::Fleet(args) => fleet::show(&args, output),
        Command::StepDown(args) => fleet::step_down(&args, output),
        Command::Store(args) => store::run(&args, output),
        Command::Completions(args) => completions::run(&args, Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command(), output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn examples_in_the_help_are_not_wrapped_on_a_terminal_of_eighty_columns() {
        let mut cli = Cli::command().term_width(80);
        cli.build();
        let names: Vec<String> = cli.get_subcommands().map(|it| it.get_name().to_owned()).collect();
        let mut commands: Vec<_> =
            names.iter().filter_map(|name| cli.find_subcommand(name).cloned()).collect();
        commands.push(cli);
        for mut command in commands {
            let Some(after) = command.get_after_help().map(ToString::to_string) else { continue };
            let help = command.render_long_help().to_string();
            assert!(help.contains(&after), "{}:\n{help}", command.get_name());
        }
    }
}
