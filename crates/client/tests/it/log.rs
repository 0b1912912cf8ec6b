//! What the library logs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::Status;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::scripted::Script;

/// Keeps what is logged.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_borrow_is_a_span_with_its_ids_and_its_outcome_and_no_secret_is_logged() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("tgm_session=trace"))
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let (mut script, mut streams) = Script::attachable();
    let pool = script.pool("indexer-api-key=s3cret");
    let session = script.session(&pool, "lease-key").await;
    let (refused, ()) = tokio::join!(session.borrow_worker("t2w", 3), async {
        script.borrow().await.fail(Status::unavailable("draining"));
        script.borrow().await.fail(Status::resource_exhausted("egress_bytes 10/10"));
    });
    assert!(refused.is_err());
    // The server may have granted the first try, so the client returns the borrow.
    script.give_back().await.take();
    let mut attached = streams.recv().await.unwrap();
    let batch = attached.batch().await.unwrap();
    attached.extend(&batch);
    attached.fail(Status::unavailable("going away"));
    script.keep_alive().await.fail(Status::permission_denied("disabled"));
    session.ended().await;
    drop(session);
    script.give_back().await.fail(Status::invalid_argument("no such lease"));
    script.hears_nothing_for(Duration::from_millis(100)).await;

    let said = log.text();
    let line = |parts: &[&str]| {
        let found = said.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(found, "{parts:?} in no line of:\n{said}");
    };
    let names =
        ["close", "rpc.system=\"grpc\"", "rpc.method=\"BorrowWorker\"", "trace=\"trace-1\""];
    let of = |more: &[&'static str]| [&names[..], more].concat();
    line(&of(&["service=\"t1r\"", "organization=\"acme\"", "rpc.grpc.status_code=0"]));
    line(&of(&["service=\"t2w\"", "rpc.grpc.status_code=8", "egress_bytes 10/10"]));
    line(&["a borrow failed and is tried again", "draining"]);
    line(&["a lease ended", "organization=\"acme\"", "disabled"]);
    line(&["a return was given up"]);
    for secret in ["s3cret", "lease-key"] {
        assert!(!said.contains(secret), "{said}");
    }
}
