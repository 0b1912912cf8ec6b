//! `man`: the help of every command as a manual page.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;

const ABOUT: &str = "\
Examples:
  tgm-session man | man -l -                         read it here
  tgm-session man --out /usr/local/share/man/man1    one page for each command";

/// Print the manual page, or write one for each command.
#[derive(Debug, clap::Args)]
#[command(after_help = ABOUT)]
pub(crate) struct Args {
    /// The folder for the pages; it is created if it does not exist.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A page that was written.
#[derive(Debug, Serialize)]
struct Written {
    page: PathBuf,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.page.display())
    }
}

/// Runs the command; `command` is the whole command line.
pub(crate) fn run(args: &Args, command: Command, mut output: Output) -> Result<(), Failure> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let Some(folder) = &args.out else {
        let mut stdout = io::stdout().lock();
        page(&command, &mut stdout)?;
        return Ok(stdout.flush()?);
    };
    let failed = |path: &Path, error: io::Error| {
        Failure::Failed(format!("cannot write {}: {error}", path.display()))
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        let path = folder.join(Man::new(command.clone()).get_filename());
        let mut text = Vec::new();
        page(command, &mut text)?;
        std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
        output.show(&Written { page: path })?;
    }
    Ok(())
}

/// Writes one page. The examples keep their lines; otherwise they would be filled.
fn page(command: &Command, to: &mut dyn Write) -> io::Result<()> {
    let man = Man::new(command.clone()).manual("tgm-session");
    man.render_title(to)?;
    man.render_name_section(to)?;
    man.render_synopsis_section(to)?;
    man.render_description_section(to)?;
    man.render_options_section(to)?;
    if command.get_subcommands().next().is_some() {
        man.render_subcommands_section(to)?;
    }
    if let Some(after) = command.get_after_help() {
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES AND NOTES"]);
        roff.control("nf", []);
        for line in after.to_string().lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []);
        roff.to_writer(to)?;
    }
    Ok(())
}
