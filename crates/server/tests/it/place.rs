//! A store file that is removed, moved or replaced while a server has it open.

use std::path::{Path, PathBuf};

use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Error, Server};
use tonic::Code;
use wire::worker::keep_alive_response::Status as Kept;

use crate::harness::{ManualClock, ROOMY, TestServer, config, eventually, get, session};

/// A server on a store file, with a lease. Then `happens` changes the file.
async fn after(happens: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf, TestServer, String) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("store")).unwrap();
    let path = folder.path().join("store/s.redb");
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    happens(&path);
    let admin = server.running.admin_address();
    eventually("it is noticed", || async { get(admin, "/readyz", "").await.0 == 503 }).await;
    (folder, path, server, key)
}

/// Checks that a server whose file is gone refuses changes and extends leases.
async fn refuses_changes(server: &TestServer, key: &str) {
    let (_, body) = get(server.running.admin_address(), "/readyz", "").await;
    assert!(body.contains("removed or replaced") && body.contains("restart"), "{body}");
    let mut client = server.client();
    let codes = [
        client.ask(session("acme")).await.unwrap_err().code(),
        client.give_back_after(key, None).await.unwrap_err().code(),
        client.state("t1r", "acme").await.unwrap_err().code(),
    ];
    assert_eq!(codes, [Code::Unavailable; 3]);
    assert_eq!(client.keep_alive(key).await.unwrap(), Kept::TtlExtended);
}

async fn second(path: &Path, server: &TestServer) -> Result<(), Error> {
    let url = StoreUrl::File { path: path.to_owned(), make_folders: false };
    Server::bind(config(ROOMY, &server.clock, url)).await.map(drop)
}

#[tokio::test]
async fn a_file_that_is_removed_is_noticed_and_no_other_server_takes_its_path() {
    let (folder, path, server, key) = after(|path| std::fs::remove_file(path).unwrap()).await;
    refuses_changes(&server, &key).await;
    let refused = second(&path, &server).await.unwrap_err();
    assert!(matches!(refused, Error::Store(store::Error::InUse { .. })), "{refused}");
    assert!(!path.exists(), "nothing is made in its place");
    let clock = server.clock.clone();
    let error = server.running.stop().await.unwrap_err();
    assert!(error.to_string().contains("removed or replaced"), "{error}");
    // After the stop the path is free, and the first server has left no file there.
    assert_eq!(std::fs::read_dir(folder.path().join("store")).unwrap().count(), 0);
    TestServer::file(ROOMY, &path, clock).await.stop().await;
}

#[tokio::test]
async fn a_file_that_another_one_is_moved_over_is_noticed_and_the_other_one_is_left_alone() {
    let other = tempfile::tempdir().unwrap();
    let sound = other.path().join("s.redb");
    let clock = TestServer::file(ROOMY, &sound, ManualClock::new()).await.stop().await;
    let contents = std::fs::read(&sound).unwrap();
    let (_folder, path, server, key) = after(|path| std::fs::rename(&sound, path).unwrap()).await;
    refuses_changes(&server, &key).await;
    let refused = second(&path, &server).await.unwrap_err();
    assert!(matches!(refused, Error::Store(store::Error::InUse { .. })), "{refused}");
    server.running.stop().await.unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), contents);
    TestServer::file(ROOMY, &path, clock).await.stop().await;
}

#[tokio::test]
async fn a_folder_that_is_gone_with_the_file_in_it_is_noticed() {
    let (folder, path, server, key) = after(|path| {
        let store = path.parent().unwrap();
        std::fs::rename(store, store.with_file_name("away")).unwrap();
    })
    .await;
    refuses_changes(&server, &key).await;
    let clock = server.clock.clone();
    server.running.stop().await.unwrap_err();
    // The moved file has all leases.
    assert!(!path.exists());
    let server = TestServer::file(ROOMY, &folder.path().join("away/s.redb"), clock).await;
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn changes_of_other_files_in_the_folder_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.redb", "b.redb"].map(|name| folder.path().join(name));
    let first = TestServer::file(ROOMY, &paths[0], ManualClock::new()).await;
    let second = TestServer::file(ROOMY, &paths[1], ManualClock::new()).await;
    std::fs::remove_file(&paths[1]).unwrap();
    let admin = second.running.admin_address();
    eventually("it is noticed", || async { get(admin, "/readyz", "").await.0 == 503 }).await;
    assert_eq!(get(first.running.admin_address(), "/readyz", "").await.0, 200);
    first.client().borrow(session("acme")).await;
    first.stop().await;
}
