//! Shows the result of a change.

use std::fmt;

use serde::Serialize;
use tgm_session_server::api;

use crate::output::{GOOD, counted, plain, styled};

/// The result of a change.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Changed(pub(super) api::Done);

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
