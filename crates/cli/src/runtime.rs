//! The runtime of a command.

use tokio::runtime::{Builder, Runtime};

use crate::failure::Failure;

/// Builds a runtime on this thread. Servers start threads of their own.
///
/// # Errors
///
/// [`Failure::Failed`] if the system refuses what a runtime needs.
pub(crate) fn current_thread() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))
}
