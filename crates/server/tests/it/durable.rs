//! The promises of a store file: no acknowledged change is lost, and a damaged file is not accepted
//! as a valid one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tgm_session_server::Server;
use tgm_session_server::store::{Error, Options, Recovered, StoreUrl};
use wire::worker::keep_alive_response::Status as Kept;
use wire::worker::return_worker_response::Status as Returned;

use crate::harness::{
    ManualClock, ROOMY, TestServer, config, eventually, seconds, session, worker,
};
use store::testing::Disk;

fn store() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.redb");
    (folder, path)
}

#[tokio::test]
async fn leases_and_returns_survive_a_restart() {
    let (_folder, path) = store();
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let mut client = server.client();
    let kept = client.borrow(session("acme").trace("a1").api_key("k")).await;
    let job = client.borrow(worker("acme", "a1", 3)).await;
    let returned = client.borrow(session("acme")).await;
    client.give_back(&returned).await;
    let clock = server.stop().await;

    let server = TestServer::file(ROOMY, &path, clock).await;
    let mut client = server.client();
    assert_eq!(server.live().await, 2);
    assert_eq!(client.keep_alive(&kept).await.unwrap(), Kept::TtlExtended);
    assert_eq!(client.keep_alive(&job).await.unwrap(), Kept::TtlExtended);
    assert_eq!(client.keep_alive(&returned).await.unwrap(), Kept::Failed);
    let state = client.state("t1r", "acme").await.unwrap();
    assert_eq!(state.worker_count_per_trace_id["a1"], 1);
    // The worker still belongs to its session.
    assert_eq!(client.give_back(&kept).await, Returned::Returned);
    assert_eq!(client.count("t2w", "acme").await, 0);
    let fresh = client.borrow(session("acme")).await;
    assert!(![kept, job, returned].contains(&fresh), "keys are never used again");
}

#[tokio::test]
async fn a_recovered_lease_has_its_full_ttl_and_a_lingering_one_what_was_left() {
    let (_folder, path) = store();
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    let lingering = client.borrow(session("lingers")).await;
    client.give_back_after(&lingering, Some(seconds(100))).await.unwrap();
    server.pass(Duration::from_secs(55));
    let clock = server.stop().await;
    // The time while the server is stopped does not count, even if the wall clock is set back.
    clock.jump(Duration::from_secs(7_200));
    clock.set_unix(Duration::from_secs(1_700_000_000));

    let server = TestServer::file(ROOMY, &path, clock).await;
    let mut client = server.client();
    assert_eq!(client.keep_alive(&lingering).await.unwrap(), Kept::Failed);
    server.pass(Duration::from_secs(44));
    assert_eq!(client.count("t1r", "lingers").await, 1);
    server.pass(Duration::from_secs(1));
    assert_eq!(client.count("t1r", "lingers").await, 0);
    server.pass(Duration::from_secs(14));
    assert_eq!(client.count("t1r", "acme").await, 1);
    server.pass(Duration::from_secs(1));
    assert_eq!(client.count("t1r", "acme").await, 0);
}

#[tokio::test]
async fn a_lease_keeps_the_ttl_of_its_grant_through_a_changed_policy() {
    let (_folder, path) = store();
    let policy = |ttl| format!("[services.t1r]\nttl = \"{ttl}\"");
    let server = TestServer::file(&policy("90s"), &path, ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    let clock = server.stop().await;
    let server = TestServer::file(&policy("60s"), &path, clock).await;
    server.pass(Duration::from_secs(89));
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_restart_under_a_policy_that_disables_an_organization_revokes_its_leases() {
    let (_folder, path) = store();
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let mut client = server.client();
    let (stopped, other) =
        (client.borrow(session("acme")).await, client.borrow(session("b")).await);
    let mut clock = server.stop().await;
    let policy = format!("{ROOMY}\n[organizations.acme]\ndisabled = true");
    // The reason is as durable as the revocation: the second start finds it in the file.
    for _ in 0..2 {
        let server = TestServer::file(&policy, &path, clock).await;
        let mut client = server.client();
        let status = client.keep_alive(&stopped).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        assert_eq!(client.keep_alive(&other).await.unwrap(), Kept::TtlExtended);
        clock = server.stop().await;
    }
}

#[tokio::test]
async fn a_borrow_id_is_known_after_a_restart() {
    let (_folder, path) = store();
    let ask = session("acme").borrow_id("00112233445566778899aabbccddeeff");
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let key = server.client().borrow(ask.clone()).await;
    let clock = server.stop().await;
    let server = TestServer::file(ROOMY, &path, clock).await;
    assert_eq!(server.client().borrow(ask).await, key);
}

#[tokio::test]
async fn a_long_stall_of_the_process_expires_nobody() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let key = client.borrow(session("acme")).await;
    server.clock.jump(Duration::from_secs(3_600));
    assert_eq!(client.keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test]
async fn a_step_of_the_wall_clock_expires_nobody() {
    let server = TestServer::memory(ROOMY).await;
    let key = server.client().borrow(session("acme")).await;
    for unix in [9_000_000_000, 0] {
        server.clock.set_unix(Duration::from_secs(unix));
        server.pass(Duration::from_secs(1));
        assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
    }
}

#[tokio::test]
async fn concurrent_borrows_share_flushes_and_keep_alives_need_none() {
    let disk = Disk::default();
    let policy = "[services.t1r]";
    let server = TestServer::on_disk(policy, disk.clone(), ManualClock::new()).await;
    let before = disk.flushes();
    disk.hold();
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let mut client = server.client();
            tokio::spawn(async move { client.borrow(session("acme")).await })
        })
        .collect();
    eventually("every grant is applied", || async { server.live().await == 64 }).await;
    disk.release();
    let mut keys = Vec::new();
    for call in calls {
        keys.push(call.await.unwrap());
    }
    let flushes = disk.flushes() - before;
    assert!((1..=6).contains(&flushes), "{flushes} flushes for 64 borrows");

    let before = disk.flushes();
    let mut client = server.client();
    for key in &keys {
        assert_eq!(client.keep_alive(key).await.unwrap(), Kept::TtlExtended);
    }
    assert_eq!(disk.flushes(), before);
}

#[tokio::test]
async fn an_answer_that_reveals_a_change_waits_until_it_is_durable() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let mut client = server.client();
    let (kept, gone) = (client.borrow(session("acme")).await, client.borrow(session("acme")).await);
    disk.hold();
    let mut other = server.client();
    let key = gone.clone();
    let returning = tokio::spawn(async move { other.give_back(&key).await });
    eventually("the return is applied", || async { server.live().await == 1 }).await;

    // A keep-alive that extends a TTL does not wait for the disk.
    assert_eq!(client.keep_alive(&kept).await.unwrap(), Kept::TtlExtended);
    // Answers that reveal the return wait: a failed keep-alive, a missing key, and a count.
    let (mut a, mut b, mut c) = (server.client(), server.client(), server.client());
    let key = gone.clone();
    let telling = [
        tokio::spawn(async move { assert_eq!(a.keep_alive(&key).await.unwrap(), Kept::Failed) }),
        tokio::spawn(async move { assert_eq!(b.give_back(&gone).await, Returned::MissingKey) }),
        tokio::spawn(async move { assert_eq!(c.count("t1r", "acme").await, 1) }),
    ];
    for _ in 0..20 {
        client.keep_alive(&kept).await.unwrap();
    }
    assert!(!returning.is_finished());
    assert!(telling.iter().all(|call| !call.is_finished()));
    disk.release();
    assert_eq!(returning.await.unwrap(), Returned::Returned);
    for call in telling {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn a_power_loss_takes_nothing_that_was_acknowledged() {
    for round in 0..12_u64 {
        let disk = Disk::default();
        let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
        let mut client = server.client();
        let mut held = Vec::new();
        for number in 0..4 + round {
            let key = client.borrow(session(&format!("org-{}", number % 3))).await;
            if number % 2 == 0 {
                held.push(key);
            } else {
                assert_eq!(client.give_back(&key).await, Returned::Returned);
            }
        }
        // A borrow that is being written when the power fails.
        disk.hold();
        let mut other = server.client();
        let unheard = tokio::spawn(async move { other.ask(session("late")).await });
        eventually("the flush is under way", || async { disk.is_waiting() }).await;
        let crashed = disk.after_power_loss(|write| (write as u64 * 7 + round).is_multiple_of(3));
        unheard.abort();
        disk.release();

        let server = TestServer::on_disk(ROOMY, crashed, ManualClock::new()).await;
        let mut client = server.client();
        for key in &held {
            assert_eq!(client.keep_alive(key).await.unwrap(), Kept::TtlExtended, "round {round}");
        }
        let late = client.count("t1r", "late").await;
        assert_eq!(server.live().await, held.len() as u64 + late.unsigned_abs());
    }
}

#[tokio::test]
async fn a_second_server_on_the_same_store_is_refused() {
    let (_folder, path) = store();
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let key = server.client().borrow(session("acme")).await;
    let url = StoreUrl::File { path: path.clone(), make_folders: false };
    let error = Server::bind(config(ROOMY, &server.clock, url)).await.unwrap_err();
    assert!(matches!(error, tgm_session_server::Error::Store(Error::InUse { .. })), "{error}");
    assert!(error.to_string().contains("in use by another server"), "{error}");
    assert_eq!(server.client().keep_alive(&key).await.unwrap(), Kept::TtlExtended);
}

/// Tries to open `bytes` as a store, and checks that a refusal does not change the file.
fn open(bytes: &[u8]) -> Result<usize, Error> {
    let (_folder, path) = store();
    std::fs::write(&path, bytes).unwrap();
    let opened = Recovered::file(&path, Options::default()).map(|store| store.leases());
    if opened.is_err() {
        assert!(std::fs::read(&path).unwrap() == bytes, "a file that was refused was changed");
    }
    opened
}

async fn store_with(leases: usize) -> Vec<u8> {
    let (_folder, path) = store();
    let server = TestServer::file("[services.t1r]", &path, ManualClock::new()).await;
    for number in 0..leases {
        server.client().borrow(session(&format!("organization-{number}"))).await;
    }
    server.stop().await;
    std::fs::read(&path).unwrap()
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_and_not_changed() {
    for bytes in [&b""[..], b"[services.t1r]\n", &[0; 64], &[0xff; 3_000]] {
        let error = open(bytes).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_truncated_store_is_refused_or_recovered_and_never_emptied() {
    let whole = store_with(30).await;
    assert_eq!(open(&whole).unwrap(), 30);
    for part in 0..16 {
        match open(&whole[..whole.len() * part / 16]) {
            Ok(leases) => assert_eq!(leases, 30, "cut to {part}/16"),
            Err(error) => {
                assert!(matches!(error, Error::Damaged { .. }), "{error:?}")
            }
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_is_refused_or_harmless_and_never_empties_a_store() {
    let whole = store_with(30).await;
    let mut refused = 0;
    for position in (0..whole.len()).step_by(whole.len() / 100) {
        let mut flipped = whole.clone();
        flipped[position] ^= 0x10;
        match open(&flipped) {
            Ok(leases) => assert_eq!(leases, 30, "bit flipped at {position}"),
            Err(Error::Damaged { .. } | Error::File { .. } | Error::Format { .. }) => refused += 1,
            Err(error) => panic!("bit flipped at {position}: {error:?}"),
        }
    }
    assert!(refused > 0, "the flips hit nothing that matters");
}

#[test]
fn a_store_of_another_format_or_program_is_refused() {
    let (_folder, path) = store();
    drop(Recovered::file(&path, Options::default()).unwrap());
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, (u64, u64)>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", (4, 0)).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Recovered::file(&path, Options::default()).unwrap_err();
    assert!(matches!(error, Error::Format { found: 4, known: 3, .. }), "{error:?}");

    let (_folder, path) = store();
    drop(redb::Database::create(&path).unwrap());
    let error = Recovered::file(&path, Options::default()).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
}

#[test]
fn a_store_that_cannot_be_made_says_why() {
    let (folder, _) = store();
    let missing = folder.path().join("no/such/sessions.redb");
    let url = StoreUrl::File { path: missing, make_folders: false };
    let error = Recovered::open(&url, Options::default()).unwrap_err();
    assert!(matches!(error, Error::FolderMissing { .. }), "{error:?}");

    let through_a_file = folder.path().join("file");
    std::fs::write(&through_a_file, "x").unwrap();
    let error = Recovered::file(Path::new(&through_a_file.join("s.redb")), Options::default());
    assert!(matches!(error.unwrap_err(), Error::File { .. }));
}

#[cfg(unix)]
#[test]
fn a_store_file_is_for_its_owner_only_and_nothing_is_left_beside_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let (folder, path) = store();
    drop(Recovered::file(&path, Options::default()).unwrap());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
