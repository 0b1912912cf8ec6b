//! The commands of an operator: who holds what, why was this refused, and what to do about it.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod disable;
pub(crate) mod limit;
pub(crate) mod organizations;
pub(crate) mod policy;
pub(crate) mod refusals;
pub(crate) mod revoke;
pub(crate) mod sessions;
pub(crate) mod table;
pub(crate) mod words;

use std::fmt;

use serde::Serialize;
use tgm_session_server::api;

use crate::output::{GOOD, counted, plain, styled};

/// Why something is done, for the audit list.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Note {
    /// Why, for the audit list.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
}

/// What came of a change.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Changed(api::Done);

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let api::Done { ended, summary } = &self.0;
        write!(f, "{} {}", styled(GOOD, "done:"), plain(summary))?;
        if *ended > 0 {
            write!(f, "; {} ended", counted(*ended, "lease"))?;
        }
        Ok(())
    }
}

/// An id, on its way into a request.
fn id(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("an id is not empty".into()),
        1..=256 => Ok(text.to_owned()),
        _ => Err("an id has at most 256 bytes".into()),
    }
}
