//! The policy file while the server runs: what a reload changes, and which files are refused.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use lease::Usage;
use tgm_session_server::operator::{By, OperatorError, OperatorEvent};
use tgm_session_server::policy::Source;
use tgm_session_server::policy::overrides::Subject;
use tgm_session_server::store::StoreUrl;
use tgm_session_server::{Config, Loaded, Operator, Policy};
use tonic::Code;
use wire::control::Reason;
use wire::worker::borrow_worker_response::BorrowStatus;
use wire::worker::return_worker_response::Status as Returned;

use crate::attached::{Attached, metric};
use crate::auth::digest;
use crate::harness::{ManualClock, TestServer, eventually, session};
use store::testing::Disk;

const BY: By<'_> = By { from: "test", note: "" };

/// The policy file of a server.
struct Written {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Written {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.toml");
        fs::write(&path, text).unwrap();
        Self { _folder: folder, path }
    }

    fn config(&self, clock: &Arc<ManualClock>) -> Config {
        let loaded = Loaded::load(&self.path).unwrap();
        let mut config = Config::new(loaded.policy, StoreUrl::Memory);
        config.policy_file = loaded.file;
        config.listen.set_port(0);
        config.admin_listen.set_port(0);
        config.threads = 2;
        config.clock = clock.clone();
        config
    }

    async fn serve(&self) -> TestServer {
        let clock = ManualClock::new();
        TestServer::start(self.config(&clock), clock).await
    }

    fn write(&self, text: &str) {
        fs::write(&self.path, text).unwrap();
    }
}

/// A policy that allows each organization `max` sessions.
fn sessions(max: u64) -> String {
    format!("[services.t1r]\nmax_per_organization = {max}\n")
}

fn operator(server: &TestServer) -> &Arc<Operator> {
    server.running.operator()
}

fn ceiling(server: &TestServer) -> Option<u64> {
    operator(server).policy().limit("acme", "t1r").0
}

/// The reason why a reload of the file is refused.
async fn refusal(server: &TestServer) -> String {
    match operator(server).reload(BY).await {
        Err(OperatorError::Conflict(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_changed_file_holds_for_the_next_borrow_and_ends_whom_it_disables() {
    let file = Written::new(&sessions(1));
    let server = file.serve().await;
    let mut told = operator(&server).subscribe();
    let mut client = server.client();
    let held = client.borrow(session("acme")).await;
    let others = client.borrow(session("other")).await;
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 1, 1));
    let mut stream = Attached::to(&server).await;
    stream.name(&[&held, &others]).await;

    file.write(&sessions(2));
    eventually("the file is in force", || std::future::ready(ceiling(&server) == Some(2))).await;
    client.borrow(session("acme")).await;
    file.write(&(sessions(2) + "[organizations.acme]\ndisabled = true"));
    assert_eq!(stream.revoked().await, (held, Reason::OrganizationDisabled));
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    stream.name(&[&others]).await;

    eventually("both are counted", || async {
        metric(&server.running, "tgm_session_policy_reloads_total{outcome=\"applied\"}").await == 2
    })
    .await;
    let OperatorEvent::Policy(status) = told.recv().await.unwrap() else { panic!("no status") };
    assert_eq!((status.refused, status.loaded_at), (None, 1_800_000_000));
    let OperatorEvent::Audit(entry) = told.recv().await.unwrap() else { panic!("no entry") };
    assert_eq!((&*entry.from, entry.ended), ("file", 0));
    eventually("the end is written down", || async {
        let audit = server.running.store().audit(None, 9);
        audit.len() == 2 && (&*audit[0].from, audit[0].ended) == ("file", 2)
    })
    .await;
}

#[tokio::test]
async fn a_broken_file_is_refused_with_place_and_reason_and_the_policy_stays() {
    let file = Written::new(&sessions(1));
    let server = file.serve().await;
    let path = file.path.display().to_string();
    assert_eq!(operator(&server).policy_status().file, Some(path.clone()));

    file.write("[services.t1r]\nmax_per_organisation = 5\n");
    eventually("it is refused", || async { operator(&server).policy_status().refused.is_some() })
        .await;
    let refused = operator(&server).policy_status().refused.unwrap();
    assert!(refused.starts_with(&format!("{path}:2:1: unknown field")), "{refused}");
    assert!(refusal(&server).await.starts_with(&refused));
    assert_eq!(ceiling(&server), Some(1));
    let mut client = server.client();
    client.borrow(session("acme")).await;
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 1, 1));
    let refused = "tgm_session_policy_reloads_total{outcome=\"refused\"}";
    assert_eq!(metric(&server.running, refused).await, 2);
    assert_eq!(server.running.store().audit(None, 9), [], "nothing was done");

    file.write(&sessions(3));
    eventually("the sound one is in force", || std::future::ready(ceiling(&server) == Some(3)))
        .await;
    eventually("and nothing is wrong", || async {
        operator(&server).policy_status().refused.is_none()
    })
    .await;
}

#[tokio::test]
async fn a_file_that_vanishes_is_told_and_the_policy_stays() {
    let file = Written::new(&sessions(1));
    let server = file.serve().await;
    fs::remove_file(&file.path).unwrap();
    eventually("it is missed", || async { operator(&server).policy_status().refused.is_some() })
        .await;
    let refused = operator(&server).policy_status().refused.unwrap();
    assert!(refused.contains("cannot read the policy file"), "{refused}");
    assert!(refused.contains(file.path.to_str().unwrap()), "{refused}");
    assert_eq!(ceiling(&server), Some(1));
    file.write(&sessions(1));
    eventually("it is back", || async { operator(&server).policy_status().refused.is_none() })
        .await;
}

#[tokio::test]
async fn a_file_that_is_no_text_or_no_file_is_refused() {
    let file = Written::new(&sessions(1));
    let server = file.serve().await;
    fs::write(&file.path, [0xff, 0xfe]).unwrap();
    assert!(refusal(&server).await.contains("utf-8"));
    fs::remove_file(&file.path).unwrap();
    fs::create_dir(&file.path).unwrap();
    assert!(refusal(&server).await.contains("it is not a file"));
}

#[tokio::test]
async fn a_file_that_would_open_the_port_to_everybody_is_refused() {
    let indexer = "[[indexers]]\nname = \"west\"\nkey_sha256 = \"DIGEST\"\n"
        .replace("DIGEST", &"ab".repeat(32));
    let file = Written::new(&(sessions(1) + &indexer));
    let clock = ManualClock::new();
    let mut config = file.config(&clock);
    config.listen = "0.0.0.0:0".parse().unwrap();
    let server = TestServer::start(config, clock).await;
    file.write(&sessions(2));
    let refused = refusal(&server).await;
    assert!(refused.contains("policy.toml: ") && refused.contains("no indexers"), "{refused}");
    assert_eq!(ceiling(&server), Some(1));
    assert!(operator(&server).policy().has_indexers());
}

/// Whether the policy in force knows this key.
fn knows(server: &TestServer, key: &str) -> bool {
    operator(server).policy().identify(Some(key.as_bytes())).is_ok()
}

#[tokio::test]
async fn a_changed_file_of_keys_is_a_changed_policy() {
    let keyed = |file: &str| {
        sessions(1)
            + "[[indexers]]\nname = \"west\"\nkey_sha256_file = \"FILE\"\n"
                .replace("FILE", file)
                .as_str()
    };
    let file = Written::new(&keyed("keys"));
    let keys = file.path.with_file_name("keys");
    fs::write(&keys, digest("old")).unwrap();
    let server = file.serve().await;
    assert!(knows(&server, "old") && !knows(&server, "new"));

    fs::write(&keys, digest("new")).unwrap();
    eventually("the new key is known", || std::future::ready(knows(&server, "new"))).await;
    assert!(!knows(&server, "old"));

    // An invalid digest and the digest of the empty text are refused. The keys in force stay.
    let refused = || operator(&server).policy_status().refused.unwrap_or_default();
    for (contents, problem) in [("hunter2".to_owned(), "64 hex digits"), (digest(""), "empty")] {
        fs::write(&keys, contents).unwrap();
        eventually(problem, || std::future::ready(refused().contains(problem))).await;
        assert!(knows(&server, "new") && !knows(&server, ""), "{}", refused());
        assert!(!refused().contains("hunter2"));
    }

    // If the policy names another key file, that file is watched, even before it exists.
    file.write(&keyed("other"));
    eventually("it is missed", || std::future::ready(refused().contains("No such file"))).await;
    fs::write(file.path.with_file_name("other"), digest("other")).unwrap();
    eventually("the other key is known", || std::future::ready(knows(&server, "other"))).await;
    assert_eq!(refused(), "");
    assert!(!knows(&server, "new"));
}

#[tokio::test]
async fn a_reload_without_a_file_is_refused() {
    let server = TestServer::memory(&sessions(1)).await;
    assert!(refusal(&server).await.contains("there is no policy file"));
    assert_eq!(operator(&server).policy_status().refused, None);
}

#[tokio::test]
async fn a_reload_of_the_same_file_is_done_and_written_down() {
    let file = Written::new(&sessions(1));
    let server = file.serve().await;
    let by = By { from: "127.0.0.1:5", note: "to be sure" };
    let done = operator(&server).reload(by).await.unwrap();
    assert_eq!(done.summary, format!("loaded the policy file {}", file.path.display()));
    let audit = server.running.store().audit(None, 9);
    assert_eq!((&*audit[0].from, &*audit[0].note), ("127.0.0.1:5", "to be sure"));
}

#[tokio::test]
async fn a_file_that_changed_before_the_server_started_is_loaded() {
    let file = Written::new(&sessions(1));
    let clock = ManualClock::new();
    let config = file.config(&clock);
    file.write(&sessions(2));
    let server = TestServer::start(config, clock).await;
    eventually("the file is in force", || std::future::ready(ceiling(&server) == Some(2))).await;
}

#[tokio::test]
async fn settings_that_need_a_restart_are_warned_about_by_name() {
    let file = Written::new(&(sessions(1) + "[server]\nmax_leases = 5\nthreads = 2"));
    let server = file.serve().await;
    file.write(&(sessions(2) + "ttl = '30s'\n[server]\nmax_leases = 6\nlisten = '127.0.0.1:1'"));
    operator(&server).reload(BY).await.unwrap();
    assert_eq!(ceiling(&server), Some(2));
    let warnings = operator(&server).policy_status().warnings;
    let named = ["ttl of service", "listen in", "max_leases in", "threads in"];
    for name in named {
        assert_eq!(warnings.iter().filter(|warning| warning.contains(name)).count(), 1, "{name}");
    }
    assert_eq!(warnings.len(), named.len(), "{warnings:?}");
    // There are no warnings for settings with which the server was started.
    file.write(&(sessions(2) + "[server]\nmax_leases = 5\nthreads = 2"));
    operator(&server).reload(BY).await.unwrap();
    assert_eq!(operator(&server).policy_status().warnings, Vec::<String>::new());
}

#[tokio::test]
async fn overrides_stay_over_a_reloaded_file() {
    let file = Written::new(&sessions(1));
    let server = file.serve().await;
    let set = operator(&server).set_limit(Subject::Organization, "acme", "t1r", Some(7), BY).await;
    set.unwrap();
    file.write(&(sessions(2) + "[organizations.acme]\nlimits = { t1r = 3 }"));
    operator(&server).reload(BY).await.unwrap();
    assert_eq!(operator(&server).policy().limit("acme", "t1r"), (Some(7), Source::Override));
    assert_eq!(operator(&server).policy().limit("other", "t1r"), (Some(2), Source::Service));
    operator(&server).set_limit(Subject::Organization, "acme", "t1r", None, BY).await.unwrap();
    assert_eq!(operator(&server).policy().limit("acme", "t1r"), (Some(3), Source::Own));
}

#[tokio::test]
async fn a_policy_set_by_the_program_stays_until_the_file_changes() {
    let file = Written::new(&sessions(1));
    let server = file.serve().await;
    let other = Policy::parse(&sessions(9), "other").unwrap().policy;
    server.running.set_policy(other).await.unwrap();
    assert_eq!(operator(&server).policy_status().file, None);
    assert_eq!(ceiling(&server), Some(9));
    file.write(&sessions(2));
    eventually("the file is in force", || std::future::ready(ceiling(&server) == Some(2))).await;
    eventually("and the status says so", || async {
        operator(&server).policy_status().file.is_some()
    })
    .await;
}

#[tokio::test]
async fn a_file_comes_into_force_even_when_the_store_can_write_nothing_down() {
    let disk = Disk::default();
    let file = Written::new(&sessions(1));
    let clock = ManualClock::new();
    let config = file.config(&clock);
    let options = tgm_session_server::store::Options { clock, ..Default::default() };
    let store = tgm_session_server::store::Recovered::on_backend(disk.clone(), options).unwrap();
    let server = tgm_session_server::Server::with_store(config, store).await.unwrap();
    let running = server.start().await.unwrap();
    disk.fail();
    file.write(&sessions(2));
    let reloaded = running.operator().reload(BY).await;
    assert!(matches!(reloaded, Err(OperatorError::Unavailable(_))), "{reloaded:?}");
    assert_eq!(running.operator().policy().limit("acme", "t1r").0, Some(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_under_load_loses_no_call() {
    const CALLERS: u64 = 32;
    const RELOADS: u64 = 200;
    const LIMITS: [u64; 2] = [8, 24];
    let file = Written::new(&sessions(LIMITS[0]));
    let server = Arc::new(file.serve().await);
    let over = Arc::new(AtomicBool::new(false));
    let granted = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (mut client, over, granted) = (server.client(), over.clone(), granted.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !over.load(Ordering::Relaxed) {
                    let answer = client.ask(session("acme")).await.unwrap();
                    let pool = answer.get_ref().worker_state.clone().unwrap();
                    let max = u64::try_from(pool.max_workers).unwrap();
                    assert!(LIMITS.contains(&max), "no policy says {max}");
                    match answer.get_ref().status() {
                        BorrowStatus::Borrowed => {
                            assert!(pool.borrowed_workers <= pool.max_workers, "{pool:?}");
                            granted.fetch_add(1, Ordering::Relaxed);
                            let key = answer.into_inner().worker_key;
                            assert_eq!(client.give_back(&key).await, Returned::Returned);
                        }
                        BorrowStatus::ResourceExhausted => {
                            assert!(pool.borrowed_workers >= pool.max_workers, "{pool:?}");
                        }
                        other => panic!("{other:?}"),
                    }
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    for reload in 0..RELOADS {
        let before = granted.load(Ordering::Relaxed);
        file.write(&sessions(LIMITS[usize::from(reload % 2 == 0)]));
        operator(&server).reload(BY).await.unwrap();
        eventually("calls go on", || std::future::ready(granted.load(Ordering::Relaxed) > before))
            .await;
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        let calls: u64 = caller.await.unwrap();
        assert!(calls > 0);
    }
    assert_eq!(server.live().await, 0);
    assert_eq!(server.client().count("t1r", "acme").await, 0);
}

#[tokio::test]
async fn a_file_with_which_the_server_would_not_start_is_refused_when_it_is_loaded_too() {
    let file = Written::new("[services.t1r]\nmax_per_organization = 1\n");
    let server = file.serve().await;
    let operator = server.running.operator();
    for (line, reason) in [
        ("listen = '0.0.0.0:9010'", "the policy has no indexers"),
        ("admin_listen = '0.0.0.0:9011'", "there is no admin token"),
        ("tls_cert = 'gone.pem'\ntls_key = 'gone.key'", "cannot use gone.pem for TLS"),
        ("store = 'file:/nowhere/at/all/sessions.redb'", "does not exist"),
    ] {
        file.write(&format!("[server]\n{line}\n[services.t1r]\nmax_per_organization = 9\n"));
        let refused = operator.reload(BY).await.unwrap_err();
        assert!(refused.to_string().contains(reason), "{refused}");
        assert_eq!(operator.policy().limit("acme", "t1r").0, Some(1), "{line}");
    }
}

#[tokio::test]
async fn a_missing_token_file_does_not_stop_a_reload_of_the_policy() {
    let file = Written::new("[services.t1r]\nmax_per_organization = 1\n");
    let clock = ManualClock::new();
    let token = file.path.with_file_name("token");
    fs::write(&token, "s3cret").unwrap();
    let mut config = file.config(&clock);
    config.admin_token_file = Some(token.clone());
    let server = TestServer::start(config, clock).await;
    fs::remove_file(token).unwrap();
    file.write("[services.t1r]\nmax_per_organization = 9\n");
    server.running.operator().reload(BY).await.unwrap();
    assert_eq!(server.running.operator().policy().limit("acme", "t1r").0, Some(9));
}

#[tokio::test]
async fn a_budget_is_warned_about_until_a_report_has_carried_its_metric() {
    let budget = "budgets = { my_metric = { amount = 9.0, per = 'day' } }";
    let file = Written::new(&format!("[services.t1r]\n[plans.pro]\n{budget}\n"));
    let server = file.serve().await;
    let operator = server.running.operator();
    let warnings = || operator.policy_status().warnings;
    let [warning] = &warnings()[..] else { panic!("{:?}", warnings()) };
    assert!(warning.contains("\"my_metric\", which no report has carried so far"), "{warning}");
    operator.reload(BY).await.unwrap();
    assert_eq!(warnings(), std::slice::from_ref(warning));
    let usage = [Usage { organization: "acme", metric: "my_metric", value: 1.0 }];
    server.running.report(None, None, &usage).await.unwrap();
    operator.reload(BY).await.unwrap();
    assert!(warnings().is_empty(), "{:?}", warnings());
}
