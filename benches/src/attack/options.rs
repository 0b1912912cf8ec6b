//! The command line.

use std::fmt;
use std::path::PathBuf;

use clap::Parser;

/// Where the server under attack keeps its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Memory,
    File,
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Memory => "memory:",
            Self::File => "file:",
        })
    }
}

/// The stores that are attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stores {
    /// In memory
    Memory,
    /// In a file
    File,
    /// Each attack on each of them; in the short form each attack on one of them
    Both,
}

/// Attacks a session server and says whether other clients suffered
#[derive(Debug, Parser)]
#[command(name = "tgm-session-attack")]
pub(crate) struct Options {
    /// The server: tgm-session
    #[arg(long, value_name = "PROGRAM", default_value = "tgm-session")]
    pub(crate) server: PathBuf,
    /// Where its store and logs are made
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub(crate) folder: PathBuf,
    /// The short form, of about a minute
    #[arg(long)]
    pub(crate) quick: bool,
    /// The stores that are attacked
    #[arg(long, value_enum, default_value = "both")]
    pub(crate) store: Stores,
    /// Write everything that was measured to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// An attack is broken off, and has failed, when the server takes more than so many MB
    #[arg(long, value_name = "MB", default_value_t = 3_072)]
    pub(crate) memory_stop: u64,
    /// List the attacks and make none
    #[arg(long)]
    pub(crate) list: bool,
    /// Only these attacks
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}
