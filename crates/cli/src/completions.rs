//! `completions`: what the shell needs to complete commands and flags.

use std::io::Write as _;

use clap::Command;
use clap_complete::Shell;

use crate::failure::Failure;

const ABOUT: &str = "\
Examples:
  tgm-session completions bash > ~/.local/share/bash-completion/completions/tgm-session
  tgm-session completions zsh  > ~/.zfunc/_tgm-session      with ~/.zfunc in $fpath
  tgm-session completions fish > ~/.config/fish/completions/tgm-session.fish";

/// Print the completions of a shell.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Runs the command; `command` is the whole command line.
pub(crate) fn run(args: &Args, mut command: Command) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&script)?;
    Ok(stdout.flush()?)
}
