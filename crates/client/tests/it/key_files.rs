//! The indexer API key comes from a file, which is replaced while the pool is open.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tgm_session::{Dsn, Error, TgmConfig, TgmPool};
use tokio::time::advance;
use tonic::Status;

use crate::log::Log;
use crate::scripted::{Script, stream};

const SECOND: Duration = Duration::from_secs(1);

struct KeyFile(TempDir);

impl KeyFile {
    fn holding(contents: impl AsRef<[u8]>) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(contents);
        file
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("key")
    }

    fn write(&self, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(), contents).unwrap();
    }

    fn parameter(&self) -> String {
        format!("indexer-api-key-file={}", self.path().display())
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_is_read_again_when_its_file_has_changed_and_the_last_good_one_stays() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let _here = tracing::subscriber::set_default(subscriber);
    let file = KeyFile::holding("first-key\n");
    let mut script = Script::new();
    let pool = script.pool(&file.parameter());
    assert!(!format!("{pool:?}").contains("first-key"));
    let mut shown = async |expected: &str| {
        advance(SECOND).await;
        let (session, ()) = tokio::join!(pool.borrow(stream()), async {
            let borrow = script.borrow_amid_beats().await;
            assert_eq!(borrow.header("x-api-key"), Some(expected));
            borrow.grant("s");
        });
        drop(session.unwrap());
        let back = script.give_back().await;
        assert_eq!(back.header("x-api-key"), Some(expected));
        back.take();
    };
    shown("first-key").await;

    file.write("second-key\r\n");
    shown("second-key").await;
    for broken in ["", "\n", "two-lines\nof-a-key\n", &"long-key".repeat(2000)] {
        file.write(broken);
        shown("second-key").await;
        shown("second-key").await;
    }
    std::fs::remove_file(file.path()).unwrap();
    shown("second-key").await;
    file.write("third-key");
    shown("third-key").await;

    let said = log.text();
    let times = |what: &str| said.matches(what).count();
    assert_eq!(times("has changed and is in use"), 2, "{said}");
    assert_eq!(times("the one before it stays"), 4, "{said}");
    assert_eq!(times("-key"), times("indexer-api-key"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_keep_alives_shows_the_key_that_the_file_holds() {
    let file = KeyFile::holding("old");
    let (mut script, mut streams) = Script::attachable();
    let pool = script.pool(&file.parameter());
    let _session = script.session(&pool, "s").await;
    for key in ["old", "new"] {
        file.write(key);
        let mut attached = streams.recv().await.unwrap();
        assert_eq!(attached.metadata.get("x-api-key").unwrap(), key);
        let batch = attached.batch().await.unwrap();
        attached.extend(&batch);
        advance(SECOND).await;
        attached.fail(Status::unavailable("going away"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_borrow_whose_key_is_refused_is_retried_if_the_key_was_replaced() {
    let file = KeyFile::holding("old");
    let mut script = Script::new();
    let pool = script.pool(&file.parameter());
    let (session, ()) = tokio::join!(pool.borrow(stream()), async {
        let borrow = script.borrow().await;
        assert_eq!(borrow.header("x-api-key"), Some("old"));
        let id = borrow.header("x-borrow-id").unwrap().to_owned();
        file.write("new");
        advance(SECOND / 2).await;
        borrow.fail(Status::unauthenticated("who is it?"));
        let again = script.borrow().await;
        assert_eq!(again.header("x-api-key"), Some("new"));
        assert_eq!(again.header("x-borrow-id"), Some(&*id));
        again.grant("s");
    });
    let session = session.unwrap();
    // The key is still the same, so the borrow is not tried again.
    let (worker, ()) = tokio::join!(session.borrow_worker("t2w", 1), async {
        script.borrow().await.fail(Status::unauthenticated("who is it?"));
    });
    assert_eq!(worker.unwrap_err(), Error::Unauthenticated { message: "who is it?".into() });
    let beat = script.keep_alive().await;
    assert_eq!(beat.header("x-api-key"), Some("new"));
    beat.extend();
}

#[tokio::test]
async fn a_file_without_a_key_is_refused_at_the_start_and_named_as_the_url_names_it() {
    let file = KeyFile::holding("");
    let start = |path: &Path| {
        let url = "tgm://h?plaintext=true&indexer-api-key-file=$KEY_FILE";
        let dsn = Dsn::parse_with(url, |_| Some(path.display().to_string())).unwrap();
        let error = TgmPool::connect(&TgmConfig::from_dsn(&dsn).unwrap()).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
        let said = format!("{error} {error:?}");
        assert!(said.contains("`indexer-api-key-file=$KEY_FILE`"), "{said}");
        assert!(!said.contains(&*file.0.path().to_string_lossy()), "{said}");
        error
    };
    assert!(start(&file.path()).to_string().contains("there is no key in it"));
    file.write("one\ntwo");
    assert!(start(&file.path()).to_string().contains("holds a character no header may"));
    file.write("k".repeat(8193));
    assert!(start(&file.path()).to_string().contains("longer than 8192 bytes"));
    let absent = start(&file.path().with_extension("gone"));
    let cause = std::error::Error::source(&absent).and_then(|cause| cause.downcast_ref());
    assert_eq!(cause.map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
}
