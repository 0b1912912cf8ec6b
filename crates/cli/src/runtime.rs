//! The runtime that a command runs on.

use tokio::runtime::{Builder, Runtime};

use crate::failure::Failure;

/// Builds a runtime on this thread; servers bring threads of their own.
///
/// # Errors
///
/// [`Failure::Failed`] when the system refuses what a runtime needs.
pub(crate) fn current_thread() -> Result<Runtime, Failure> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the runtime: {error}")))
}
