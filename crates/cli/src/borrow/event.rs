//! What becomes of a held session, for people and for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tgm_session::Error;

use crate::bar::Bar;
use crate::output::{FAINT, GOOD, NAME, WARN, styled};

/// What happened, for people and for programs. No event carries a key: keys are proofs.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event<'a> {
    Granted {
        kind: Kind,
        service: &'a str,
        organization: &'a str,
        number: usize,
    },
    #[serde(rename = "refused")]
    NotGranted {
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

/// What was asked for.
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
            | Error::WorkersLimitExceeded { active, max, scope } => {
                Self { reason, scope: Some(scope.as_str()), active: Some(*active), max: Some(*max) }
            }
            _ => Self { reason, scope: None, active: None, max: None },
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match self.scope {
            Some(scope) => write!(f, " {}", styled(FAINT, format_args!("(scope: {scope})"))),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Session => "session",
            Self::Worker => "worker",
        })
    }
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted { kind: Kind::Session, service, organization, .. } => {
                write!(f, "{}     session of {service} for {organization}", styled(GOOD, "granted"))
            }
            Self::Granted { service, number, .. } => {
                write!(f, "{}     worker {number} of {service}", styled(GOOD, "granted"))
            }
            Self::NotGranted { kind, reason } => {
                write!(f, "{}     {kind}: {reason}", styled(WARN, "refused"))
            }
            Self::Holding { workers, trace } => {
                write!(
                    f,
                    "{}     1 session, {workers} workers, trace {trace}",
                    styled(GOOD, "holding")
                )
            }
            Self::Pool { service, organization, active, max } => {
                let bar = Bar { active: *active, max: *max };
                write!(f, "{}        {organization} {service} {bar}", styled(NAME, "pool"))
            }
            Self::KeptAlive { keep_alives, held_ms } => {
                let seconds = held_ms / 1000;
                write!(
                    f,
                    "{}  {keep_alives} keep-alives in {seconds} s",
                    styled(FAINT, "kept alive")
                )
            }
            Self::BorrowedAgain { kind: Kind::Session, .. } => {
                write!(
                    f,
                    "{}    the session: the server had forgotten it",
                    styled(WARN, "borrowed")
                )
            }
            Self::BorrowedAgain { number, .. } => {
                write!(
                    f,
                    "{}    worker {number}: the server had forgotten it",
                    styled(WARN, "borrowed")
                )
            }
            Self::Unreachable { message } => write!(f, "{}     {message}", styled(WARN, "silence")),
            Self::Reachable => {
                write!(f, "{}        the server answers again", styled(GOOD, "back"))
            }
            Self::Ended { kind, reason, .. } => {
                write!(f, "{}       {kind}: {reason}", styled(WARN, "ended"))
            }
            Self::Returning { why } => write!(f, "{}   {why}", styled(FAINT, "returning")),
            Self::Returned { returned, not_returned, held_ms } => {
                let seconds = Duration::from_millis(*held_ms).as_secs_f64();
                let leases = if *returned == 1 { "lease" } else { "leases" };
                write!(
                    f,
                    "{}    {returned} {leases} after {seconds:.1} s",
                    styled(GOOD, "returned")
                )?;
                match not_returned {
                    0 => Ok(()),
                    n => write!(f, ", {} not: they end with their TTL", styled(WARN, n)),
                }
            }
        }
    }
}
