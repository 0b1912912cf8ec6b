//! `completions`: the completion script of a shell.

use std::io::Write as _;

use clap::Command;
use clap_complete::Shell;

use crate::failure::Failure;

const ABOUT: &str = "\
Examples:
  tgm-session completions bash \\
        > ~/.local/share/bash-completion/completions/tgm-session
  tgm-session completions zsh  > ~/.zfunc/_tgm-session   with ~/.zfunc in $fpath
  tgm-session completions fish > ~/.config/fish/completions/tgm-session.fish";

/// Print the completion script of a shell.
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
    clap_complete::generate(args.shell, &mut command, name.clone(), &mut script);
    if args.shell == Shell::Bash {
        script = with_matching_labels(script, &name);
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&script)?;
    Ok(stdout.flush()?)
}

/// The script of bash with the hyphen in the name of the program written in one way everywhere:
/// clap_complete writes it in two, so that nothing after a command would be completed
/// (clap-rs/clap, issue 6421). Changes nothing once that is fixed.
fn with_matching_labels(script: Vec<u8>, name: &str) -> Vec<u8> {
    match String::from_utf8(script) {
        Ok(script) => {
            let (wrong, right) = (name.replace('-', "__subcmd__"), name.replace('-', "__"));
            script.replace(&wrong, &right).into_bytes()
        }
        Err(error) => error.into_bytes(),
    }
}
