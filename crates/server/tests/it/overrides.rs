//! Changes by operators while the server runs. They are durable, have precedence over the file, and
//! act at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lease::WallTime;
use tgm_session_server::operator::{By, MAX_LIMIT, MAX_NOTE, OperatorError, OperatorEvent};
use tgm_session_server::policy::Source;
use tgm_session_server::policy::overrides::{
    AuditEntry, Override, OverrideChange, OverrideKey, Subject,
};
use tgm_session_server::store::{Options, Order, Recovered, Unavailable};
use tgm_session_server::{Operator, Policy};
use tonic::Code;
use wire::control::Reason;
use wire::worker::keep_alive_response::Status as Kept;

use crate::attached::Attached;
use crate::harness::{ManualClock, ROOMY, TestServer, eventually, session, worker};
use store::testing::Disk;

const ACME: (Subject, &str) = (Subject::Organization, "acme");

fn by(note: &str) -> By<'_> {
    By { from: "127.0.0.1:5", note }
}

fn operator(server: &TestServer) -> &Arc<Operator> {
    server.running.operator()
}

async fn disable(server: &TestServer, (subject, id): (Subject, &str)) -> u64 {
    operator(server).set_disabled(subject, id, Some(true), by("")).await.unwrap().ended
}

fn store() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.redb");
    (folder, path)
}

/// The audit entries, the latest first.
fn audit(server: &TestServer) -> Vec<AuditEntry> {
    server.running.store().audit(None, 100)
}

#[tokio::test]
async fn a_limit_that_an_operator_sets_holds_for_the_next_borrow_until_it_is_cleared() {
    let server = TestServer::memory("[services.t1r]\nmax_per_organization = 1").await;
    let mut client = server.client();
    client.borrow(session("acme")).await;
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 1, 1));

    let (subject, id) = ACME;
    let done = operator(&server).set_limit(subject, id, "t1r", Some(3), by("a trial")).await;
    let done = done.unwrap();
    assert_eq!(done.ended, 0);
    assert_eq!(
        done.summary,
        "set the limit of organization acme on t1r to 3 (was 1 by the service)"
    );
    assert_eq!(operator(&server).policy_status().overrides, 1);
    client.borrow(session("acme")).await;
    client.borrow(session("acme")).await;
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 3, 3));
    client.borrow(session("other")).await;
    assert_eq!(client.refused(session("other")).await, ("organization".to_owned(), 1, 1));

    let done = operator(&server).set_limit(subject, id, "t1r", None, by("")).await.unwrap();
    assert_eq!(
        done.summary,
        "cleared the limit of organization acme on t1r (was 3 by an override)"
    );
    assert_eq!(done.ended, 0, "a lowered limit ends nobody");
    assert_eq!(client.refused(session("acme")).await, ("organization".to_owned(), 3, 1));
    assert_eq!(operator(&server).policy_status().overrides, 0);
}

#[tokio::test]
async fn a_limit_of_an_api_key_counts_its_leases_only() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let set = operator(&server).set_limit(Subject::ApiKey, "key-1", "t1r", Some(1), by("")).await;
    assert_eq!(set.unwrap().summary, "set the limit of API key key-1 on t1r to 1 (was none)");
    client.borrow(session("acme").api_key("key-1")).await;
    let refused = client.refused(session("acme").api_key("key-1")).await;
    assert_eq!(refused, ("api_key".to_owned(), 1, 1));
    client.borrow(session("acme").api_key("key-2")).await;
}

#[tokio::test]
async fn disabling_ends_sessions_at_once_and_enabling_lets_the_next_borrow_through() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let held = client.borrow(session("acme").trace("a1")).await;
    client.borrow(worker("acme", "a1", 9)).await;
    let keyed = client.borrow(session("other").api_key("key-1")).await;
    let others = client.borrow(session("other")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&held, &keyed, &others]).await;

    assert_eq!(disable(&server, ACME).await, 2);
    assert_eq!(stream.revoked().await, (held.clone(), Reason::OrganizationDisabled));
    assert_eq!(disable(&server, (Subject::ApiKey, "key-1")).await, 1);
    assert_eq!(stream.revoked().await, (keyed, Reason::ApiKeyDisabled));
    stream.nothing_was_pushed().await;
    for status in [
        client.keep_alive(&held).await.unwrap_err(),
        client.ask(session("acme")).await.unwrap_err(),
        client.ask(session("other").api_key("key-1")).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    }

    let (subject, id) = ACME;
    let done = operator(&server).set_disabled(subject, id, Some(false), by("")).await.unwrap();
    assert_eq!((done.ended, &*done.summary), (0, "enabled organization acme"));
    client.borrow(session("acme")).await;
    let ended = client.keep_alive(&held).await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied, "nothing that ended lives again");
}

#[tokio::test]
async fn an_operator_may_enable_what_the_file_disables_and_leave_it_to_the_file_again() {
    let file = format!("{ROOMY}\n[organizations.acme]\ndisabled = true");
    let server = TestServer::memory(&file).await;
    let mut client = server.client();
    client.ask(session("acme")).await.unwrap_err();
    let (subject, id) = ACME;
    operator(&server).set_disabled(subject, id, Some(false), by("")).await.unwrap();
    client.borrow(session("acme")).await;
    let done = operator(&server).set_disabled(subject, id, None, by("")).await.unwrap();
    assert_eq!(done.ended, 1, "what the file says holds again, at once");
    assert_eq!(done.summary, "cleared the override that enabled organization acme");
    client.ask(session("acme")).await.unwrap_err();
}

#[tokio::test]
async fn overrides_stay_on_top_of_every_policy_that_follows() {
    let server = TestServer::memory(ROOMY).await;
    disable(&server, ACME).await;
    let (subject, id) = (Subject::Organization, "other");
    operator(&server).set_limit(subject, id, "t2w", Some(1), by("")).await.unwrap();

    let policy = |text: &str| Policy::parse(text, "test.toml").unwrap().policy;
    server.running.set_policy(policy("[services.t1r]")).await.unwrap();
    server.client().ask(session("acme")).await.unwrap_err();
    let lost = OverrideKey { subject, id: id.into(), service: Some("t2w".into()) };
    assert!(!operator(&server).policy().is_effective(&lost));
    assert_eq!(operator(&server).policy_status().overrides, 2, "it is kept");

    server.running.set_policy(policy(ROOMY)).await.unwrap();
    assert_eq!(operator(&server).policy().limit("other", "t2w"), (Some(1), Source::Override));
    server.running.set_policy(policy("[services.t1r]")).await.unwrap();
    let done = operator(&server).set_limit(subject, id, "t2w", None, by("")).await.unwrap();
    assert_eq!(
        done.summary,
        "cleared the limit of organization other on t2w (was 1 by an override)"
    );
}

#[tokio::test]
async fn overrides_survive_a_restart() {
    let (_folder, path) = store();
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    disable(&server, ACME).await;
    let (subject, id) = (Subject::Organization, "other");
    operator(&server).set_limit(subject, id, "t1r", Some(1), by("too many")).await.unwrap();
    let clock = server.stop().await;

    let server = TestServer::file(ROOMY, &path, clock).await;
    let mut client = server.client();
    let status = client.ask(session("acme")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    client.borrow(session("other")).await;
    assert_eq!(client.refused(session("other")).await, ("organization".to_owned(), 1, 1));
    assert_eq!(operator(&server).policy_status().overrides, 2);
    let notes: Vec<_> = audit(&server).into_iter().map(|entry| entry.note).collect();
    assert_eq!(notes, ["too many".into(), Box::<str>::default()]);
}

/// Writes an override into the store file and ends no session, as if the server had been killed.
async fn disabled_before_a_kill(path: &Path, clock: Arc<ManualClock>) {
    let options = Options { clock, ..Options::default() };
    let url = format!("file:{}", path.display()).parse().unwrap();
    let store = Recovered::open(&url, options).unwrap().resume().unwrap();
    let key = OverrideKey { subject: ACME.0, id: ACME.1.into(), service: None };
    let value = Some(Override { value: 1, set_at: WallTime::default(), note: "".into() });
    let entry = AuditEntry {
        number: 0,
        at: WallTime::default(),
        from: "test".into(),
        action: "disabled organization acme".into(),
        note: "".into(),
        ended: 0,
    };
    store.record(Some(OverrideChange { key, value }), entry).await.unwrap();
    store.close().unwrap();
}

#[tokio::test]
async fn an_override_that_was_written_down_before_a_kill_acts_before_anything_is_served() {
    let (_folder, path) = store();
    let server = TestServer::file(ROOMY, &path, ManualClock::new()).await;
    let held = server.client().borrow(session("acme")).await;
    let clock = server.stop().await;
    disabled_before_a_kill(&path, clock.clone()).await;

    let server = TestServer::file(ROOMY, &path, clock).await;
    assert_eq!(server.live().await, 0);
    let status = server.client().keep_alive(&held).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_invalid_change_is_refused_and_not_recorded() {
    let server = TestServer::memory(ROOMY).await;
    let operator = operator(&server);
    let limit = |id: String, service: &'static str, max| async move {
        operator.set_limit(Subject::Organization, &id, service, max, by("")).await.unwrap_err()
    };
    let acme = || "acme".to_owned();
    assert_eq!(
        limit(acme(), "t9", Some(1)).await,
        OperatorError::NotFound(
            "the policy has no service t9; the services are: t1r, t2w".to_owned()
        )
    );
    assert_eq!(
        limit(acme(), "t1r", None).await.to_string(),
        "no operator has set a limit of organization acme on t1r"
    );
    assert!(matches!(limit(String::new(), "t1r", Some(1)).await, OperatorError::Invalid(_)));
    assert!(matches!(limit("a".repeat(257), "t1r", Some(1)).await, OperatorError::Invalid(_)));
    assert!(matches!(limit(acme(), "t1r", Some(MAX_LIMIT + 1)).await, OperatorError::Invalid(_)));
    let cleared = operator.set_disabled(Subject::ApiKey, "key-1", None, by("")).await;
    assert_eq!(
        cleared.unwrap_err().to_string(),
        "no operator has disabled or enabled API key key-1"
    );
    let long = "é".repeat(MAX_NOTE + 1);
    let noted = operator.set_disabled(Subject::ApiKey, "key-1", Some(true), by(&long)).await;
    assert!(matches!(noted, Err(OperatorError::Invalid(_))), "{noted:?}");
    assert_eq!((audit(&server).len(), operator.policy_status().overrides), (0, 0));

    let long = "é".repeat(MAX_NOTE);
    operator.set_disabled(Subject::ApiKey, "key-1", Some(true), by(&long)).await.unwrap();
    limit_at_the_bounds(&server).await;
}

async fn limit_at_the_bounds(server: &TestServer) {
    let id = "a".repeat(256);
    for max in [0, MAX_LIMIT] {
        let set = operator(server).set_limit(ACME.0, &id, "t1r", Some(max), by("")).await;
        assert!(set.is_ok(), "{set:?}");
    }
}

#[tokio::test]
async fn each_change_is_recorded_and_announced_with_its_source_its_note_and_the_ended_leases() {
    let server = TestServer::memory(ROOMY).await;
    let mut told = operator(&server).subscribe();
    let mut client = server.client();
    client.borrow(session("acme")).await;
    client.borrow(session("acme")).await;
    let (subject, id) = ACME;
    operator(&server).set_disabled(subject, id, Some(true), by("unpaid")).await.unwrap();
    operator(&server).set_disabled(subject, id, None, by("paid")).await.unwrap();

    let entries = audit(&server);
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.number, &*entry.from, &*entry.action, &*entry.note, entry.ended))
        .collect();
    let from = "127.0.0.1:5";
    assert_eq!(
        seen,
        [
            (2, from, "cleared the override that disabled organization acme", "paid", 0),
            (1, from, "disabled organization acme", "unpaid", 2),
        ]
    );
    let OperatorEvent::Policy(status) = told.recv().await.unwrap() else { panic!("no status") };
    assert_eq!(status.overrides, 1);
    let OperatorEvent::Audit(entry) = told.recv().await.unwrap() else { panic!("no entry") };
    assert_eq!(entry, entries[1]);
}

#[tokio::test]
async fn revoking_a_session_by_its_number_ends_its_workers_too_and_is_written_down() {
    let server = TestServer::memory(ROOMY).await;
    let mut client = server.client();
    let held = client.borrow(session("acme").trace("a1")).await;
    let job = client.borrow(worker("acme", "a1", 9)).await;
    client.borrow(session("other")).await;
    let mut stream = Attached::to(&server).await;
    stream.name(&[&held]).await;
    let page = server.running.store().leases(Default::default(), Order::Oldest, None, 1).await;
    let number = page.unwrap().leases[0].number;

    let done = operator(&server).revoke(number, by("misbehaves")).await.unwrap();
    assert_eq!(done.ended, 2);
    assert_eq!(done.summary, format!("ended session {number} of organization acme on t1r"));
    assert_eq!(stream.revoked().await, (held.clone(), Reason::Operator));
    assert_eq!(client.keep_alive(&held).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(client.keep_alive(&job).await.unwrap(), Kept::Failed);
    assert_eq!(server.live().await, 1);
    let entries = audit(&server);
    assert_eq!((entries.len(), entries[0].ended, &*entries[0].note), (1, 2, "misbehaves"));

    let again = operator(&server).revoke(number, by("")).await.unwrap_err();
    assert_eq!(again, OperatorError::NotFound(format!("there is no lease {number}")));
    assert_eq!(audit(&server).len(), 1);
}

#[tokio::test]
async fn a_change_goes_on_when_its_caller_goes_away() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    server.client().borrow(session("acme")).await;
    disk.hold();
    let asked = tokio::spawn({
        let operator = operator(&server).clone();
        async move { operator.set_disabled(ACME.0, ACME.1, Some(true), by("")).await }
    });
    eventually("the disk is asked", || std::future::ready(disk.is_waiting())).await;
    assert!(
        !operator(&server).policy().disabled_by(Subject::Organization, "acme").0,
        "it is not durable yet"
    );
    asked.abort();
    disk.release();
    eventually("the session has ended", || async { server.live().await == 0 }).await;
    assert!(operator(&server).policy().disabled_by(Subject::Organization, "acme").0);
    eventually("the list says so", || async { audit(&server)[0].ended == 1 }).await;
}

#[tokio::test]
async fn an_override_that_the_disk_did_not_keep_does_not_come_into_force() {
    let disk = Disk::default();
    let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
    let held = server.client().borrow(session("acme")).await;
    disk.fail();
    let set = operator(&server).set_disabled(ACME.0, ACME.1, Some(true), by("")).await;
    assert_eq!(set.unwrap_err(), OperatorError::Unavailable(Unavailable::Failed));
    assert!(!operator(&server).policy().disabled_by(Subject::Organization, "acme").0);
    assert_eq!(server.client().keep_alive(&held).await.unwrap(), Kept::TtlExtended);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn changes_at_the_same_time_are_all_made_one_after_another() {
    const CHANGES: u64 = 400;
    let server = TestServer::memory(ROOMY).await;
    let changes = (0..CHANGES).map(|number| {
        let operator = operator(&server).clone();
        tokio::spawn(async move {
            let id = format!("org-{number}");
            let set = operator.set_limit(Subject::Organization, &id, "t1r", Some(number), by(""));
            set.await.unwrap();
            // Each change is in force when its call returns, whatever other calls change meanwhile.
            let ceiling = operator.policy().limit(&id, "t1r");
            assert_eq!(ceiling, (Some(number), Source::Override));
        })
    });
    for change in futures_util::future::join_all(changes).await {
        change.unwrap();
    }
    for number in 0..CHANGES {
        let ceiling = operator(&server).policy().limit(&format!("org-{number}"), "t1r");
        assert_eq!(ceiling, (Some(number), Source::Override));
    }
    assert_eq!(operator(&server).policy_status().overrides, CHANGES);
}
