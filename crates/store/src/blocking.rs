//! Work that takes a while, on threads that may block.

use tokio::task::JoinHandle;

use crate::answers::Unavailable;

/// Does what takes a while on a thread for what blocks.
pub(crate) async fn aside<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Unavailable> + Send + 'static,
) -> Result<R, Unavailable> {
    aside_at_once(work).await
}

/// The answer of what runs on a thread for what blocks.
pub(crate) async fn joined<R, E: From<Unavailable>>(
    work: JoinHandle<Result<R, E>>,
) -> Result<R, E> {
    match work.await {
        Ok(answer) => answer,
        Err(stopped) => match stopped.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(_) => Err(Unavailable::Closing.into()),
        },
    }
}

/// As [`aside`]; it begins at once, and goes on whether anybody waits for it or not.
pub(crate) fn aside_at_once<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, Unavailable> + Send + 'static,
) -> impl Future<Output = Result<R, Unavailable>> + Send {
    joined(tokio::task::spawn_blocking(work))
}
