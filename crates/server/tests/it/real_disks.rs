//! Real file systems that are full or read-only, mounted in a namespace of their own.

use std::path::Path;
use std::process::Command;

use tgm_session_server::store::{Error, Options, Recovered};
use tonic::Code;
use wire::worker::keep_alive_response::Status as Kept;

use crate::harness::{ManualClock, TestServer, get, session};

/// The variable with the folder of the file system, for the test in the namespace.
const MOUNTED: &str = "TGM_TEST_MOUNTED";

/// Runs the ignored test `test` of this binary, with a file system of `size` mounted.
///
/// If this user may not mount, the test fails, or is skipped if that is allowed.
fn on_a_file_system(test: &str, size: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size={size} tmpfs \"${MOUNTED}\"");
    // As root, or as root of a new user namespace.
    let ways = [&["--mount"][..], &["--mount", "--map-root-user"]];
    let namespace = |way: &[&str], script: &str| {
        let mut command = Command::new("unshare");
        command.args(way).args(["sh", "-c", script]).env(MOUNTED, folder.path());
        command
    };
    let works =
        |way: &&&[&str]| namespace(way, &mount).output().is_ok_and(|tried| tried.status.success());
    let Some(way) = ways.iter().find(works) else {
        let allowed = std::env::var_os("TGM_SESSION_ALLOW_MISSING").is_some();
        assert!(allowed, "nobody may mount a file system here: see scripts/test --allow-missing");
        eprintln!("left out: {test}, for nobody may mount a file system here");
        return;
    };
    let mut inner = namespace(way, &format!("{mount} && exec \"$0\" \"$@\""));
    inner.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--ignored", "--nocapture"]);
    let ran = inner.output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}\n{errors}");
}

fn mounted() -> std::path::PathBuf {
    std::env::var_os(MOUNTED).expect("a mounted file system").into()
}

fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Fills the file system to the last block.
fn fill(folder: &Path) -> std::path::PathBuf {
    use std::io::Write as _;
    let path = folder.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    while let Ok(written) = file.write(&[1; 4_096]) {
        assert_ne!(written, 0);
    }
    path
}

#[test]
fn a_first_start_on_a_full_disk_fails_and_leaves_nothing() {
    on_a_file_system("real_disks::first_start_on_a_full_disk", "48k");
}

#[test]
#[ignore = "runs within a_first_start_on_a_full_disk_fails_and_leaves_nothing"]
fn first_start_on_a_full_disk() {
    let path = mounted().join("s.redb");
    let error = Recovered::file(&path, Options::default()).unwrap_err();
    let Error::File { action: "make", source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
    assert!(error.to_string().contains("s.redb"), "{error}");
    assert_eq!(names(&mounted()), [""; 0]);
}

#[test]
fn a_disk_that_fills_up_refuses_changes_and_loses_nothing() {
    on_a_file_system("real_disks::disk_that_fills_up", "2m");
}

#[tokio::test]
#[ignore = "runs within a_disk_that_fills_up_refuses_changes_and_loses_nothing"]
async fn disk_that_fills_up() {
    let path = mounted().join("s.redb");
    let server = TestServer::file("[services.t1r]", &path, ManualClock::new()).await;
    let filler = fill(&mounted());
    let (mut client, mut keys) = (server.client(), Vec::new());
    let status = loop {
        match client.ask(session(&"o".repeat(200))).await {
            Ok(answer) => keys.push(answer.into_inner().worker_key),
            Err(status) => break status,
        }
        assert!(keys.len() < 50_000, "the disk is never full");
    };
    assert_eq!(status.code(), Code::Unavailable);
    let (ready, body) = get(server.running.admin_address(), "/readyz", "").await;
    assert_eq!(ready, 503, "{body}");
    for key in &keys {
        assert_eq!(client.keep_alive(key).await.unwrap(), Kept::TtlExtended);
    }
    let clock = server.clock.clone();
    server.running.stop().await.unwrap_err();
    std::fs::remove_file(filler).unwrap();

    let server = TestServer::file("[services.t1r]", &path, clock).await;
    let mut client = server.client();
    for key in &keys {
        assert_eq!(client.keep_alive(key).await.unwrap(), Kept::TtlExtended);
    }
    client.borrow(session("acme")).await;
    server.stop().await;
    assert_eq!(names(&mounted()), ["s.redb"]);
}

#[test]
fn a_full_disk_with_a_store_on_it_can_be_started_from() {
    on_a_file_system("real_disks::start_on_a_full_disk", "2m");
}

#[tokio::test]
#[ignore = "runs within a_full_disk_with_a_store_on_it_can_be_started_from"]
async fn start_on_a_full_disk() {
    let path = mounted().join("s.redb");
    let server = TestServer::file("[services.t1r]", &path, ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    let clock = server.stop().await;
    fill(&mounted());
    let server = TestServer::file("[services.t1r]", &path, clock).await;
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[test]
fn a_read_only_disk_is_refused_and_named() {
    on_a_file_system("real_disks::read_only_disk", "2m");
}

#[test]
#[ignore = "runs within a_read_only_disk_is_refused_and_named"]
fn read_only_disk() {
    let remount = |how: &str| {
        let mut mount = Command::new("mount");
        mount.args(["-o", how]).arg(mounted());
        assert!(mount.status().unwrap().success());
    };
    let path = mounted().join("s.redb");
    let refused = || {
        let error = Recovered::file(&path, Options::default()).unwrap_err();
        let Error::File { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{error}");
        assert!(error.to_string().contains("s.redb"), "{error}");
    };
    remount("remount,ro");
    refused();
    assert_eq!(names(&mounted()), [""; 0]);
    remount("remount,rw");
    drop(Recovered::file(&path, Options::default()).unwrap());
    let bytes = std::fs::read(&path).unwrap();
    remount("remount,ro");
    refused();
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert_eq!(names(&mounted()), ["s.redb"]);
}
