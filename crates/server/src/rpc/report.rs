//! Reports of usage: the one call whose message may be large.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::codegen::StdError;

use super::timely::Timely;
use super::{Answer, Body, identify, unary};
use crate::live::Live;
use crate::serve::{InFlight, PortLimits, blocking};
use crate::store::Store;
use crate::usage::UsageReports;

/// Most reports at once that are larger than any other message may be. Others wait, and their
/// callers with them.
const LARGE_AT_ONCE: usize = 4;

/// Takes reports from their bodies to where they are counted.
#[derive(Debug)]
pub(crate) struct Reports<S> {
    usage: UsageReports<S>,
    large: Arc<Semaphore>,
    limits: PortLimits,
}

impl<S: Store> Reports<S> {
    pub(crate) fn new(usage: UsageReports<S>, limits: PortLimits) -> Self {
        Self { usage, large: Arc::new(Semaphore::new(LARGE_AT_ONCE)), limits }
    }

    /// Answers one call of Report of a caller that is known.
    pub(super) async fn answer<B>(
        &self,
        live: &Arc<ArcSwap<Live>>,
        request: Request<B>,
        call: &mut InFlight,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<StdError> + Send,
    {
        let (parts, mut body) = request.into_parts();
        let reported = self.report(live.clone(), parts.headers, &mut body, call).await;
        reported.map_or_else(|status| unary::refuse(self.usage.refused(status)), Answer::into_http)
    }

    async fn report<B>(
        &self,
        live: Arc<ArcSwap<Live>>,
        metadata: HeaderMap,
        body: &mut B,
        call: &mut InFlight,
    ) -> Result<Answer, Status>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<StdError>,
    {
        let (message, place) = self.read(body, call).await?;
        let large = place.is_some();
        let usage = self.usage.clone();
        let apply = move || {
            let _place = place;
            // The policy may have changed since.
            let live = live.load();
            let caller = identify(&live.policy, &metadata)?;
            usage.report(&live, caller, &metadata, message)
        };
        // A large one takes many milliseconds, for which other calls are not to wait.
        let applied = if large { blocking(apply).await } else { apply() };
        applied?.await
    }

    /// Reads the message, and takes a place for it if it is large.
    async fn read<B>(
        &self,
        body: &mut B,
        call: &mut InFlight,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Status>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Into<StdError>,
    {
        let mut message = BytesMut::new();
        let mut place = None;
        let (most, large) = (self.limits.max_report_bytes, self.limits.max_message_bytes);
        let mut body = Timely::new(body, self.limits.request_timeout);
        while let Some(data) = body.data().await? {
            let length = message.len() + data.len();
            if length > most as usize {
                let problem = format!("the message is larger than {most} bytes");
                return Err(Status::invalid_argument(problem));
            }
            if length > large as usize && place.is_none() {
                let free = self.large.clone().acquire_owned().await;
                place = Some(free.map_err(|_| Status::unavailable("the server is stopping"))?);
            }
            call.take(data.len()).map_err(super::full)?;
            message.extend_from_slice(&data);
        }
        Ok((message.freeze(), place))
    }
}
