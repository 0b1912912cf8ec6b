//! Stores of one fleet on a real etcd.

use lease::KeptAlive;

use super::*;
use crate::testing::etcd::Etcd;

async fn is_kept(store: &Store, id: LeaseId) -> bool {
    match store.keep_alive(id, None).await {
        Ok(KeptAlive::Extended { .. }) => true,
        Err(Unavailable::Lapsed | Unavailable::Full) => false,
        other => panic!("{other:?}"),
    }
}

/// Writes something else until nothing has room.
fn fill(etcd: &Etcd) {
    let value = "x".repeat(100_000);
    while etcd.try_ctl(&["put", "other", &value]).is_ok() {}
}

#[tokio::test]
async fn one_server_on_etcd_leads_and_another_follows() {
    let Some(etcd) = Etcd::shared() else { return };
    let first = open_url(etcd.url("one_leads"), "10.0.0.1:9010").await;
    let id = borrow_soon(&first).await;
    let second = open_url(etcd.url("one_leads"), "10.0.0.2:9010").await;
    assert_eq!(borrow(&second).await, Err(BorrowError::Unavailable(Unavailable::Standby)));
    second.set_policy_hash("abc");
    let seen = member_soon(&first, |member| &*member.policy_hash == "abc").await;
    assert_eq!((&*seen.address, seen.role, seen.led), ("10.0.0.2:9010", MemberRole::Standby, None));
    let stepped_down = async || first.step_down(true).await.is_ok();
    eventually("the leader hands over", stepped_down).await;
    borrow_soon(&second).await;
    assert_eq!(second.live().await.unwrap(), [("t1r".into(), 2)]);
    assert!(matches!(second.keep_alive(id, None).await, Ok(lease::KeptAlive::Extended { .. })));
    second.close().unwrap();
    borrow_soon(&first).await;
    first.close().unwrap();
}

#[tokio::test]
async fn a_fleet_goes_on_with_two_of_three_members_of_its_etcd() {
    let Some(mut etcd) = Etcd::start(3, &[]) else { return };
    let store = open_url(etcd.url("three"), "10.0.0.1:9010").await;
    let id = borrow_soon(&store).await;
    // The member to which the store is connected, and then another one.
    etcd.kill(0);
    borrow_soon(&store).await;
    etcd.resume(0);
    etcd.wait();
    borrow_soon(&store).await;
    etcd.freeze(1);
    borrow_soon(&store).await;
    etcd.thaw(1);
    borrow_soon(&store).await;
    let kept = store.keep_alive(id, None).await;
    assert!(matches!(kept, Ok(lease::KeptAlive::Extended { .. })), "{kept:?}");
    // Without a quorum nothing changes, and nothing that was acknowledged is lost.
    let before = store.live().await.unwrap();
    etcd.kill(0);
    etcd.kill(2);
    while store.keep_alive(id, None).await != Err(Unavailable::Lapsed) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    etcd.resume(0);
    etcd.resume(2);
    borrow_soon(&store).await;
    assert!(store.live().await.unwrap()[0].1 > before[0].1);
    store.close().unwrap();
}

#[tokio::test]
async fn a_full_etcd_refuses_changes_and_nothing_is_lost() {
    let small = ["--quota-backend-bytes=2097152"];
    let Some(mut etcd) = Etcd::start(1, &small) else { return };
    let store = open_url(etcd.url("full"), "10.0.0.1:9010").await;
    let id = borrow_soon(&store).await;
    fill(&etcd);
    // Keep-alives go on while the leadership is valid, and no change is confirmed.
    let is_full = async || {
        is_kept(&store, id).await;
        match borrow(&store).await {
            Err(BorrowError::Unavailable(Unavailable::Full)) => true,
            Err(BorrowError::Unavailable(Unavailable::Stalled | Unavailable::Lapsed)) => false,
            other => panic!("{other:?}"),
        }
    };
    eventually("changes are refused", is_full).await;
    let text = Unavailable::Full.to_string();
    assert!(text.contains("is full and refuses changes"), "{text}");

    // With room again, the store goes on by itself, with every lease.
    etcd.kill(0);
    etcd.set_flags(&["--quota-backend-bytes=104857600"]);
    etcd.resume(0);
    eventually("it has room", async || etcd.try_ctl(&["alarm", "disarm"]).is_ok()).await;
    borrow_soon(&store).await;
    assert!(is_kept(&store, id).await);
    let count = store.live().await.unwrap();
    store.close().unwrap();
    let next = open_url(etcd.url("full"), "10.0.0.2:9010").await;
    borrow_soon(&next).await;
    assert_eq!(next.live().await.unwrap()[0].1, count[0].1 + 1);
    next.close().unwrap();
}

#[tokio::test]
async fn a_leader_writes_again_what_a_backup_of_etcd_lacks() {
    let Some(mut etcd) = Etcd::start(1, &[]) else { return };
    let store = open_url(etcd.url("backup"), "10.0.0.1:9010").await;
    let early = borrow_soon(&store).await;
    let gone = borrow_soon(&store).await;
    let backup = etcd.back_up();
    // What comes later than the backup: one lease ends, and others begin.
    store.release(gone, None, Duration::ZERO).await.unwrap();
    let late = [borrow_soon(&store).await, borrow_soon(&store).await];
    let before = store.live().await.unwrap();
    let term = epoch(&store);

    etcd.restore(&backup);
    eventually("a new term", async || epoch(&store) > term).await;
    let newest = borrow_soon(&store).await;
    for id in [early, late[0], late[1]] {
        assert!(is_kept(&store, id).await);
    }
    assert!(late.iter().all(|id| id.number().serial() < newest.number().serial()));
    store.close().unwrap();
    // Another server reads all of it, and what had ended is not back.
    let next = open_url(etcd.url("backup"), "10.0.0.2:9010").await;
    borrow_soon(&next).await;
    assert_eq!(next.live().await.unwrap()[0].1, before[0].1 + 2);
    assert!(matches!(next.keep_alive(gone, None).await, Ok(KeptAlive::Failed)));
    next.close().unwrap();
}

fn epoch(store: &Store) -> u64 {
    let (_, leader) = store.fleet().unwrap();
    leader.borrow().as_ref().map_or(0, |leader| leader.epoch)
}

#[tokio::test]
async fn a_fleet_goes_on_while_etcd_is_compacted() {
    let Some(etcd) = Etcd::shared() else { return };
    let url = etcd.url("compacted");
    let first = open_url(url.clone(), "10.0.0.1:9010").await;
    borrow_soon(&first).await;
    let mut granted = 1;
    for round in 2..6 {
        for _ in 0..20 {
            borrow_soon(&first).await;
            granted += 1;
        }
        etcd.compact();
        // A takeover reads everything, also right after a compaction.
        let next = open_url(url.clone(), &format!("10.0.0.{round}:9010")).await;
        eventually("it hands over", async || first.step_down(true).await.is_ok()).await;
        etcd.compact();
        borrow_soon(&next).await;
        granted += 1;
        assert_eq!(next.live().await.unwrap()[0].1, granted);
        next.close().unwrap();
        borrow_soon(&first).await;
        granted += 1;
    }
    first.close().unwrap();
}
