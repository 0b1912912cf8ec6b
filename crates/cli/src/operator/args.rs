//! Arguments that several commands of an operator take.

use crate::operator::admin::{Subject, Target};

/// Why something is done, for the audit list.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Note {
    /// Why, for the audit list.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(super) note: String,
}

/// One organization or API key, on the command line.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Whom {
    /// What it is.
    #[arg(value_name = "WHAT", value_enum)]
    subject: Subject,

    /// Its id.
    #[arg(value_name = "ID", value_parser = id)]
    id: String,
}

impl Whom {
    /// The target of a call.
    pub(crate) fn target(&self) -> Target<'_> {
        Target { subject: self.subject, id: &self.id }
    }
}

/// Checks an id that goes into a request.
pub(super) fn id(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("the id is empty".into()),
        1..=256 => Ok(text.to_owned()),
        _ => Err("the id has more than 256 bytes".into()),
    }
}
