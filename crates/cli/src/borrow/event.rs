//! The events of a held session, for people and for programs.

use std::fmt;
use std::time::Duration;

use anstyle::Style;
use serde::Serialize;
use tgm_session::{Error, Scope};

use crate::bar::Bar;
use crate::output::{BAD, FAINT, GOOD, NAME, WARN, counted, plain, styled};

/// An event, for people and for programs. No event carries a key: whoever has a key can end the lease.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event<'a> {
    Granted {
        kind: Kind,
        service: &'a str,
        organization: &'a str,
        number: usize,
    },
    Refused {
        kind: Kind,
        #[serde(flatten)]
        reason: Reason<'a>,
    },
    Failed {
        kind: Kind,
        #[serde(flatten)]
        reason: Reason<'a>,
    },
    Holding {
        workers: usize,
        trace: &'a str,
    },
    Pool {
        service: &'a str,
        organization: &'a str,
        active: u64,
        max: Option<u64>,
    },
    KeptAlive {
        keep_alives: u64,
        held_ms: u64,
    },
    BorrowedAgain {
        kind: Kind,
        number: usize,
    },
    Unreachable {
        message: &'a str,
    },
    Reachable,
    Ended {
        kind: Kind,
        number: usize,
        #[serde(flatten)]
        reason: Reason<'a>,
    },
    Returning {
        why: &'a str,
    },
    Returned {
        returned: u64,
        not_returned: u64,
        held_ms: u64,
    },
}

/// What was borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Session,
    Worker,
}

/// Why something was refused, or ended.
#[derive(Debug, Serialize)]
pub(super) struct Reason<'a> {
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u64>,
}

impl From<&Error> for Reason<'_> {
    fn from(error: &Error) -> Self {
        let reason = error.to_string();
        let cause = match error {
            Error::Lost { cause } => cause,
            error => error,
        };
        match cause {
            Error::ConcurrentStreamLimitExceeded { active, max, scope }
            | Error::WorkersLimitExceeded { active, max, scope }
                if *scope != Scope::Unknown =>
            {
                Self { reason, scope: Some(scope.as_str()), active: Some(*active), max: Some(*max) }
            }
            _ => Self { reason, scope: None, active: None, max: None },
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&plain(&self.reason))?;
        match self.scope {
            Some(scope) => write!(f, " {}", styled(FAINT, format_args!("(scope: {scope})"))),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Session => "session",
            Self::Worker => "worker",
        })
    }
}

impl Event<'_> {
    /// The event for people: one word, its style, and the rest of the line.
    fn words(&self) -> (Style, &'static str, String) {
        match self {
            Self::Granted { kind: Kind::Session, service, organization, .. } => (
                GOOD,
                "granted",
                format!("session of {} for {}", plain(service), plain(organization)),
            ),
            Self::Granted { service, number, .. } => {
                (GOOD, "granted", format!("worker {number} of {}", plain(service)))
            }
            Self::Refused { kind, reason } => (WARN, "refused", format!("{kind}: {reason}")),
            Self::Failed { kind, reason } => (BAD, "failed", format!("{kind}: {reason}")),
            Self::Holding { workers, trace } => {
                let workers = counted(*workers as u64, "worker");
                (GOOD, "holding", format!("1 session, {workers}, trace {}", plain(trace)))
            }
            Self::Pool { service, organization, active, max } => {
                let bar = Bar { active: *active, max: *max };
                (NAME, "pool", format!("{} {} {bar}", plain(organization), plain(service)))
            }
            Self::KeptAlive { keep_alives, held_ms } => {
                let count = counted(*keep_alives, "keep-alive");
                (FAINT, "kept alive", format!("{count} in {} s", held_ms / 1000))
            }
            Self::BorrowedAgain { kind: Kind::Session, .. } => {
                (WARN, "borrowed", "the session again: the server had forgotten it".into())
            }
            Self::BorrowedAgain { number, .. } => {
                (WARN, "borrowed", format!("worker {number} again: the server had forgotten it"))
            }
            Self::Unreachable { message } => (WARN, "no answer", plain(message)),
            Self::Reachable => (GOOD, "reachable", "the server answers again".into()),
            Self::Ended { kind, reason, .. } => (WARN, "ended", format!("{kind}: {reason}")),
            Self::Returning { why } => (FAINT, "returning", (*why).to_owned()),
            Self::Returned { returned, not_returned, held_ms } => {
                let seconds = Duration::from_millis(*held_ms).as_secs_f64();
                let leases = counted(*returned, "lease");
                let lost = match not_returned {
                    0 => String::new(),
                    lost => format!("; {lost} not: the server frees them when their TTL ends"),
                };
                (GOOD, "returned", format!("{leases} after {seconds:.1} s{lost}"))
            }
        }
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (style, word, rest) = self.words();
        write!(f, "{style}{word:<10}{style:#}  {rest}")
    }
}
