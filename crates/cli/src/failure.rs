//! How a command ends when it does not end well: one line, and an exit code with one meaning.

use std::io;
use std::process::ExitCode;

use tgm_session::Error;

/// Why a command did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Exit code 1: it failed, a port or a store that cannot be had too.
    Failed(String),
    /// Exit code 2: a flag, a URL or a policy that cannot be meant.
    Usage(String),
    /// Exit code 3: the server answered, and the answer is no.
    Refused(String),
    /// Exit code 4: the server cannot be reached, or cannot serve now.
    Unavailable(String),
    /// Whoever read the output left before its end: no reason for a message, and no fault.
    NobodyReads,
}

impl Failure {
    /// What to tell, in one line; nothing when nobody would read it.
    pub(crate) fn message(&self) -> Option<&str> {
        match self {
            Self::Failed(message)
            | Self::Usage(message)
            | Self::Refused(message)
            | Self::Unavailable(message) => Some(message),
            Self::NobodyReads => None,
        }
    }

    /// The same failure, with what it is about in front.
    pub(crate) fn about(self, what: &str) -> Self {
        let with = |message: String| format!("{what}: {message}");
        match self {
            Self::Failed(message) => Self::Failed(with(message)),
            Self::Usage(message) => Self::Usage(with(message)),
            Self::Refused(message) => Self::Refused(with(message)),
            Self::Unavailable(message) => Self::Unavailable(with(message)),
            Self::NobodyReads => Self::NobodyReads,
        }
    }

    /// What to tell the caller of the process.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::NobodyReads => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
            Self::Unavailable(_) => 4,
        })
    }
}

/// Makes a failure to write the output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match of_kind(&error) {
            Kind::Refused => Self::Refused(message),
            Kind::Unavailable => Self::Unavailable(message),
            Kind::Usage => Self::Usage(message),
            Kind::Failed => Self::Failed(message),
        }
    }
}

impl From<tgm_session_server::Error> for Failure {
    fn from(error: tgm_session_server::Error) -> Self {
        let message = error.to_string();
        if error.is_usage() { Self::Usage(message) } else { Self::Failed(message) }
    }
}

enum Kind {
    Refused,
    Unavailable,
    Usage,
    Failed,
}

/// Sorts the errors of a pool by the exit code that says the same.
fn of_kind(error: &Error) -> Kind {
    match error {
        Error::Lost { cause } => of_kind(cause),
        Error::Unavailable { .. } => Kind::Unavailable,
        Error::InvalidArgument { .. } => Kind::Usage,
        Error::Unauthenticated { .. }
        | Error::PermissionDenied { .. }
        | Error::QuotaExceeded { .. }
        | Error::ConcurrentStreamLimitExceeded { .. }
        | Error::WorkersLimitExceeded { .. } => Kind::Refused,
        _ => Kind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use tgm_session::Scope;

    use super::*;

    fn full() -> Error {
        Error::ConcurrentStreamLimitExceeded { active: 1, max: 1, scope: Scope::Organization }
    }

    #[test]
    fn a_lost_session_exits_as_its_cause_would() {
        let lost = |cause| Error::Lost { cause: Box::new(cause) };
        assert!(matches!(Failure::from(lost(full())), Failure::Refused(_)));
        let gone = Error::unavailable("no answer");
        assert!(matches!(Failure::from(lost(gone)), Failure::Unavailable(_)));
    }

    #[test]
    fn a_closed_pipe_is_no_fault_and_a_full_disk_is() {
        let closed = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((closed.message(), closed.exit_code()), (None, ExitCode::SUCCESS));
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit_code(), ExitCode::from(1));
        assert!(full.message().is_some_and(|message| message.starts_with("cannot write")));
    }
}
