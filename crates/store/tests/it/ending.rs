//! Many leases end at once, and no lease ends because of a wall clock.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lease::{KeptAlive, LeaseId, Reason, Request, Terms};
use policy::Policy;
use store::testing::ManualClock;
use store::{AuditNote, Enforced, Options, Recovered, Store};

/// A revocation makes two changes per lease. With so many leases, it has to wait for the disk
/// before it is complete.
const LEASES: usize = 27_000;

const YEAR: Duration = Duration::from_secs(31_557_600);

fn file(path: &Path, clock: &Arc<ManualClock>) -> Recovered {
    Recovered::file(path, Options { clock: clock.clone(), ..Options::default() }).unwrap()
}

async fn borrow(store: &Store, request: &Request<'_>, leases: usize) -> Vec<LeaseId> {
    let borrows = (0..leases).map(|_| store.borrow(request, &Terms::default()));
    let borrows: Vec<_> = borrows.collect();
    let granted = join_all(borrows).await.into_iter().map(|borrowed| {
        let borrowed = borrowed.unwrap();
        borrowed.delivery.complete();
        borrowed.grant.id
    });
    granted.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_of_more_than_may_wait_for_the_disk_goes_on_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let (path, clock) = (folder.path().join("store"), ManualClock::new());
    let store = file(&path, &clock).resume().unwrap();
    let held = borrow(&store, &Request::session("t1r", "acme"), LEASES).await;
    let other = borrow(&store, &Request::session("t1r", "globex"), 1).await[0];
    let disabled = "[services.t1r]\n[organizations.acme]\ndisabled = true";
    let disabled = Policy::parse(disabled, "test.toml").unwrap().policy;
    let enforced = store.enforce(&disabled, AuditNote::None).await.unwrap();
    assert_eq!(enforced, Enforced { ended: LEASES, entry: None });
    for id in held.iter().copied().step_by(5_000) {
        let kept = store.keep_alive(id, None).await.unwrap();
        assert_eq!(kept, KeptAlive::Revoked(Reason::OrganizationDisabled.into()));
    }
    store.close().unwrap();
    let recovered = file(&path, &clock);
    assert_eq!(recovered.leases(), 1);
    let kept = recovered.resume().unwrap().keep_alive(other, None).await.unwrap();
    assert!(matches!(kept, KeptAlive::Extended { .. }));
}

#[tokio::test]
async fn a_start_under_a_wall_clock_of_another_century_ends_no_lease_then_or_later() {
    let folder = tempfile::tempdir().unwrap();
    let (path, clock) = (folder.path().join("store"), ManualClock::new());
    let mut id = None;
    for unix in [630 * YEAR, 56 * YEAR, Duration::ZERO, 1_000 * YEAR, 57 * YEAR] {
        clock.set_unix(unix);
        let store = file(&path, &clock).resume().unwrap();
        let id = match id {
            Some(id) => id,
            None => *id.insert(borrow(&store, &Request::session("t1r", "acme"), 1).await[0]),
        };
        for _ in 0..3 {
            clock.jump(Duration::from_millis(400));
            store.tick();
            let kept = store.keep_alive(id, None).await.unwrap();
            assert!(matches!(kept, KeptAlive::Extended { .. }), "{unix:?}: {kept:?}");
        }
        store.close().unwrap();
    }
}
