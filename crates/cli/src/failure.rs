//! How a command fails: one line, and an exit code with one meaning.

use std::io;
use std::process::ExitCode;

use tgm_session::Error;

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Exit code 1: it failed. A port that is taken and a store that does not open are among these.
    Failed(String),
    /// Exit code 2: an invalid flag, URL or policy.
    Usage(String),
    /// Exit code 3: the server refused.
    Refused(String),
    /// Exit code 4: the server cannot be reached, or cannot serve now.
    Unavailable(String),
    /// Several failures, at least one: exit code 2 if one of them has it, else that of the first.
    Several(Vec<Self>),
    /// The reader of the output closed it. This is no error, and there is no message.
    OutputClosed,
}

impl Failure {
    /// Makes one failure of all; `None` if there is none.
    pub(crate) fn of(mut failures: Vec<Self>) -> Option<Self> {
        match failures.len() {
            0 | 1 => failures.pop(),
            _ => Some(Self::Several(failures)),
        }
    }

    /// The messages, each in one line.
    pub(crate) fn messages(&self) -> Vec<&str> {
        match self {
            Self::Several(failures) => failures.iter().flat_map(Self::messages).collect(),
            failure => failure.message().into_iter().collect(),
        }
    }

    /// The message, in one line: the first of several, and none for a closed output.
    pub(crate) fn message(&self) -> Option<&str> {
        match self {
            Self::Failed(message)
            | Self::Usage(message)
            | Self::Refused(message)
            | Self::Unavailable(message) => Some(message),
            Self::Several(failures) => failures.first().and_then(Self::message),
            Self::OutputClosed => None,
        }
    }

    /// The same failure, whose message begins with `what`.
    pub(crate) fn about(self, what: &str) -> Self {
        let with = |message: String| format!("{what}: {message}");
        match self {
            Self::Failed(message) => Self::Failed(with(message)),
            Self::Usage(message) => Self::Usage(with(message)),
            Self::Refused(message) => Self::Refused(with(message)),
            Self::Unavailable(message) => Self::Unavailable(with(message)),
            Self::Several(failures) => {
                Self::Several(failures.into_iter().map(|failure| failure.about(what)).collect())
            }
            Self::OutputClosed => Self::OutputClosed,
        }
    }

    /// The exit code of the process.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Several(failures) => {
                let mut codes = failures.iter().map(Self::code);
                let first = codes.next().unwrap_or(1);
                if codes.any(|code| code == 2) { 2 } else { first }
            }
            Self::OutputClosed => 0,
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused(_) => 3,
            Self::Unavailable(_) => 4,
        }
    }
}

/// A failure to write the output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        kind_of(&error)(error.to_string())
    }
}

/// One failure with the message of all errors. A policy file may have several.
impl From<tgm_session_server::Error> for Failure {
    fn from(error: tgm_session_server::Error) -> Self {
        let message = error.to_string();
        if error.is_usage() { Self::Usage(message) } else { Self::Failed(message) }
    }
}

/// Returns the failure whose exit code has the meaning of an error of a pool.
fn kind_of(error: &Error) -> fn(String) -> Failure {
    match error {
        Error::Lost { cause } => kind_of(cause),
        Error::Unavailable { .. } => Failure::Unavailable,
        Error::InvalidArgument { .. } => Failure::Usage,
        Error::Unauthenticated { .. }
        | Error::PermissionDenied { .. }
        | Error::QuotaExceeded { .. }
        | Error::ConcurrentStreamLimitExceeded { .. }
        | Error::WorkersLimitExceeded { .. } => Failure::Refused,
        _ => Failure::Failed,
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
    fn a_lost_session_has_the_exit_code_of_its_cause() {
        let lost = |cause| Error::Lost { cause: Box::new(cause) };
        assert!(matches!(Failure::from(lost(full())), Failure::Refused(_)));
        let gone = Error::unavailable("no answer");
        assert!(matches!(Failure::from(lost(gone)), Failure::Unavailable(_)));
    }

    #[test]
    fn several_failures_show_all_messages_and_a_usage_error_decides_the_exit_code() {
        let (port, flag) = (Failure::Failed("a port".into()), Failure::Usage("a flag".into()));
        assert_eq!(Failure::of(Vec::new()), None);
        assert_eq!(Failure::of(vec![port.clone()]), Some(port.clone()));
        let both = Failure::of(vec![port.clone(), flag]).unwrap();
        assert_eq!((both.messages(), both.message()), (vec!["a port", "a flag"], Some("a port")));
        assert_eq!(both.exit_code(), ExitCode::from(2));
        let ports = Failure::of(vec![port.clone(), port]).unwrap();
        assert_eq!(ports.exit_code(), ExitCode::from(1));
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
        let closed = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((closed.message(), closed.exit_code()), (None, ExitCode::SUCCESS));
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.exit_code(), ExitCode::from(1));
        assert!(full.message().is_some_and(|message| message.starts_with("cannot write")));
    }
}
