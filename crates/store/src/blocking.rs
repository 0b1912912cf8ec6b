//! Work that takes long, on threads that may block.

use tokio::task::JoinHandle;

use crate::answers::Unavailable;

/// Runs `work` on a thread that may block, from the first poll of the future.
pub(crate) async fn run_blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Unavailable> + Send + 'static,
) -> Result<R, Unavailable> {
    join(tokio::task::spawn_blocking(work)).await
}

/// Waits for `work`, which runs on a thread that may block, and returns its answer. The work goes on
/// when the future is dropped. A panic of the work goes on in the caller.
pub(crate) async fn join<R, E: From<Unavailable>>(work: JoinHandle<Result<R, E>>) -> Result<R, E> {
    match work.await {
        Ok(answer) => answer,
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => Err(Unavailable::Closing.into()),
        },
    }
}
