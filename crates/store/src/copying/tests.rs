use std::path::Path;
use std::sync::Arc;

use lease::{BorrowId, Reason, Request, Terms, Usage};
use policy::Policy;

use super::*;
use crate::journal::postgres::tests::cluster::Cluster;
use crate::recovered::Recovered;
use crate::testing::etcd::Etcd;
use crate::testing::{entry, set};
use crate::{BorrowError, Borrowed, Store, Unavailable, UsageReport, inspect};

fn file(path: &Path) -> StoreUrl {
    format!("file:{}", path.display()).parse().unwrap()
}

fn database(cluster: &Cluster, schema: &str) -> StoreUrl {
    let url = format!("postgres://tgm@127.0.0.1:{}/postgres?schema={schema}", cluster.port);
    url.parse().unwrap()
}

/// Runs `future`. Opening and copying a store block, and are done outside of it.
fn run<R>(future: impl Future<Output = R>) -> R {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn open(url: &StoreUrl) -> Store {
    let options = Options { leader_ttl: Duration::from_secs(1), ..Options::default() };
    let store = Recovered::open(url, options).unwrap().resume().unwrap();
    let mut terms = store.terms();
    let number = *run(terms.wait_for(Option::is_some)).unwrap();
    store.serve_term(number.unwrap());
    store
}

async fn borrow(store: &Store, request: Request<'_>) -> lease::LeaseId {
    let terms = Terms { ttl: Duration::from_secs(60), ..Terms::default() };
    let Borrowed { grant, delivery } = loop {
        match store.borrow(&request, &terms).await {
            // A short leadership lapses for a moment while the machine is busy.
            Err(BorrowError::Unavailable(Unavailable::Lapsed)) => tokio::task::yield_now().await,
            answer => break answer.unwrap(),
        }
    };
    delivery.complete();
    grant.id
}

/// Makes a store with records of every kind, some of them with text that needs care.
fn fill(url: &StoreUrl) {
    let store = open(url);
    run(fill_store(&store));
    store.close().unwrap();
}

async fn fill_store(store: &Store) {
    let named = Request::session("t1r", "a\\0c\0me").indexer("west").api_key("key-1");
    for number in 1..=3 {
        borrow(store, named.borrow_id(BorrowId(number)).trace("trace")).await;
    }
    borrow(store, Request { max_workers: 1, ..named }.trace("trace")).await;
    let lingers = borrow(store, Request::session("t1r", "acme")).await;
    store.release(lingers, None, Duration::from_secs(300)).await.unwrap();
    let ended = borrow(store, Request::session("t1r", "acme").borrow_id(BorrowId(9))).await;
    store.release(ended, None, Duration::ZERO).await.unwrap();
    let revoked = borrow(store, Request::session("t1r", "globex")).await;
    store.revoke(revoked, Reason::Operator).await.unwrap();
    let usage = Usage { organization: "acme", metric: "egress_bytes", value: 1.5 };
    let policy = Arc::new(Policy::built_in());
    let (report, _) = UsageReport::of(Some("west"), Some("report"), &[usage], policy);
    store.report(report).await.unwrap();
    store.record(Some(set("acme", 40)), entry("limited\0 acme \\0")).await.unwrap();
    store.record(None, entry("looked")).await.unwrap();
}

/// Everything that a store keeps, as text that compares.
fn content(url: &StoreUrl) -> (Vec<String>, Stamp) {
    let mut source = Source::open(url, &mut |_| ()).unwrap();
    let mut restored = nothing_restored().unwrap();
    let stamp = source.read(&mut restored).unwrap();
    let mut content: Vec<_> =
        restored.ledger.snapshot().map(|change| format!("{change:?}")).collect();
    content.sort();
    content.push(format!("{:?}", restored.records));
    (content, stamp)
}

#[test]
fn a_store_is_the_same_after_a_move_to_a_database_and_back() {
    let Some(cluster) = Cluster::shared() else { return };
    moves_there_and_back(&database(&cluster, "a_move"));
}

#[test]
fn a_store_is_the_same_after_a_move_to_etcd_and_back() {
    let Some(etcd) = Etcd::shared() else { return };
    moves_there_and_back(&etcd.url("a_move").parse().unwrap());
}

fn moves_there_and_back(between: &StoreUrl) {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) =
        (file(&folder.path().join("a.redb")), file(&folder.path().join("b.redb")));
    fill(&first);
    let (mut steps, before) = (Vec::new(), std::fs::read(folder.path().join("a.redb")).unwrap());
    let counts = copy(&first, between, &mut |step| steps.push(step)).unwrap();
    let expected =
        RecordCounts { leases: 5, lingering: 1, remembered: 3, usage: 1, overrides: 1, audit: 2 };
    assert_eq!(counts, expected);
    assert_eq!((steps[0], steps.last()), (CopyProgress::Reading, Some(&CopyProgress::Counting)));
    assert_eq!(std::fs::read(folder.path().join("a.redb")).unwrap(), before, "it was changed");
    assert_eq!(content(between), content(&first));
    assert_eq!(copy(between, &second, &mut |_| ()).unwrap(), counts);
    assert_eq!(content(&second), content(&first));

    let looked = inspect(between).unwrap();
    assert_eq!(looked.records, counts);
    let fleet = looked.fleet.unwrap();
    assert_eq!((fleet.leadership.epoch, fleet.leadership.released), (0, true));
    let looked = inspect(&second).unwrap();
    assert_eq!((looked.records, looked.fleet, looked.version), (counts, None, 3));

    // A server of a fleet goes on from it, and grants above every serial number.
    let store = open(between);
    assert_eq!(store.audit(None, 10).len(), 2);
    run(borrow(&store, Request::session("t1r", "acme")));
    store.close().unwrap();
}

#[test]
fn stores_that_are_in_use_or_not_empty_are_refused() {
    let Some(cluster) = Cluster::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (full, new) = (file(&path("full.redb")), file(&path("new.redb")));
    let (used, empty) = (database(&cluster, "used"), database(&cluster, "not_used"));
    fill(&full);
    let refused = |from: &StoreUrl, to: &StoreUrl| {
        let error = copy(from, to, &mut |_| ()).unwrap_err().to_string();
        assert!(!path("new.redb").exists(), "{error}");
        error
    };
    let memory = StoreUrl::Memory;
    assert!(refused(&memory, &new).contains("keeps nothing"));
    assert!(refused(&full, &memory).contains("keeps nothing"));
    assert!(refused(&new, &full).contains("cannot open"));
    assert!(refused(&empty, &new).contains("no tables"));
    assert!(inspect(&empty).unwrap_err().to_string().contains("no tables"));
    let other = file(&path("other.redb"));
    fill(&other);
    assert!(refused(&full, &other).contains("something at"));

    // A file that a server has open.
    let server = Recovered::open(&full, Options::default()).unwrap();
    assert!(matches!(copy(&full, &new, &mut |_| ()), Err(Error::InUse { .. })));
    drop(server);

    // A database whose fleet has a leader: it is seen at the first renewal.
    let server = open(&used);
    let mut steps = Vec::new();
    let error = copy(&used, &new, &mut |step| steps.push(step)).unwrap_err().to_string();
    assert!(error.contains("a server leads its fleet"), "{error}");
    assert_eq!(steps, [CopyProgress::Watching(Duration::from_millis(1_100))]);
    assert!(refused(&full, &used).contains("a server leads its fleet"));
    server.close().unwrap();

    copy(&full, &used, &mut |_| ()).unwrap();
    assert!(refused(&full, &used).contains("rows already"));
}

#[test]
fn a_copy_that_ends_in_the_middle_leaves_nothing() {
    let Some(cluster) = Cluster::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let from = file(&folder.path().join("a.redb"));
    fill(&from);
    for to in [database(&cluster, "in_the_middle"), file(&folder.path().join("b.redb"))] {
        for last in [
            |step: &CopyProgress| matches!(step, CopyProgress::Writing(..)),
            |step: &CopyProgress| matches!(step, CopyProgress::Counting),
        ] {
            let copied = std::panic::catch_unwind(|| {
                copy(&from, &to, &mut |step| assert!(!last(&step), "the end"))
            });
            assert!(copied.is_err());
            inspect(&to).unwrap_err();
        }
        copy(&from, &to, &mut |_| ()).unwrap();
        assert_eq!(content(&to), content(&from));
    }
}

#[test]
fn a_server_that_starts_meanwhile_ends_the_copy() {
    let Some(cluster) = Cluster::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (file, from) = (file(&folder.path().join("a.redb")), database(&cluster, "meanwhile"));
    fill(&file);
    copy(&file, &from, &mut |_| ()).unwrap();
    let to = super::tests::file(&folder.path().join("b.redb"));
    let mut server = None;
    let error = copy(&from, &to, &mut |step| {
        if step == CopyProgress::Counting {
            server = Some(open(&from));
        }
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("terminating connection"), "{error}");
    inspect(&to).unwrap_err();
    server.unwrap().close().unwrap();
}

#[test]
fn keys_that_are_in_use_or_not_empty_are_refused() {
    let Some(etcd) = Etcd::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (full, new) = (file(&folder.path().join("a.redb")), file(&folder.path().join("b.redb")));
    let [used, empty] = ["used", "not_used"].map(|prefix| etcd.url(prefix).parse().unwrap());
    fill(&full);
    let refused = |from: &StoreUrl, to: &StoreUrl| {
        let error = copy(from, to, &mut |_| ()).unwrap_err().to_string();
        inspect(&new).unwrap_err();
        error
    };
    assert!(refused(&empty, &new).contains("no keys"));
    assert!(inspect(&empty).unwrap_err().to_string().contains("no keys"));
    let server = open(&used);
    assert!(refused(&used, &new).contains("a server leads its fleet"));
    assert!(refused(&full, &used).contains("a server leads its fleet"));
    server.close().unwrap();
    // A copy that ends in the middle leaves nothing.
    let copied = std::panic::catch_unwind(|| {
        copy(&full, &empty, &mut |step| assert!(!matches!(step, CopyProgress::Writing(..))))
    });
    assert!(copied.is_err());
    inspect(&empty).unwrap_err();
    copy(&full, &used, &mut |_| ()).unwrap();
    assert!(refused(&full, &used).contains("rows already"));
    // A server that starts meanwhile ends the copy.
    let mut server = None;
    let error = copy(&used, &new, &mut |step| {
        if step == CopyProgress::Counting {
            server = Some(open(&used));
        }
    });
    assert!(error.unwrap_err().to_string().contains("a server leads its fleet"));
    inspect(&new).unwrap_err();
    server.unwrap().close().unwrap();
}
