//! Large usage reports on a disk that is busy or loses power.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use lease::{Request as Borrow, Terms, Usage};
use policy::Policy;
use store::testing::{Disk, ManualClock, eventually};
use store::{BorrowError, Options, Recovered, Store, Unavailable, UsageReport};

/// A store without budgets on `disk`.
fn store_on(disk: Disk) -> Store {
    let options = Options { clock: ManualClock::new(), ..Options::default() };
    Recovered::on_backend(disk, options).unwrap().resume().unwrap()
}

/// A report by `caller` of one byte for each of `organizations` organizations.
fn ones(caller: &str, name: &str, organizations: usize) -> UsageReport {
    let names: Vec<String> = (0..organizations).map(|number| format!("o{number}")).collect();
    let usage = |organization| Usage { organization, metric: "egress_bytes", value: 1.0 };
    let usages: Vec<Usage<'_>> = names.iter().map(|name| usage(name)).collect();
    UsageReport::of(Some(caller), Some(name), &usages, Arc::new(Policy::built_in())).0
}

async fn is_one_of_each(store: &Store, organizations: usize) -> bool {
    let usage = store.usage().await.unwrap();
    usage.len() == organizations && usage.iter().all(|count| count.used.month.1 == 1.0)
}

#[tokio::test]
async fn a_large_report_counts_once_wherever_the_power_is_lost() {
    const AMOUNTS: usize = 5_000;
    let disk = Disk::default();
    let store = store_on(disk.clone());
    let mut report = Box::pin(store.report(ones("west", "one", AMOUNTS)));
    let mut disks = Vec::new();
    let reported = loop {
        disks.push(disk.after_power_loss(|_| false));
        match tokio::time::timeout(Duration::from_millis(1), &mut report).await {
            Ok(reported) => break reported.unwrap(),
            Err(_) if disks.len() > 12 => break report.await.unwrap(),
            Err(_) => {}
        }
    };
    assert!(reported.counted);
    disks.push(disk.after_power_loss(|_| false));
    let last = disks.len() - 1;
    for (number, disk) in disks.into_iter().enumerate() {
        let store = store_on(disk);
        let again = store.report(ones("west", "one", AMOUNTS)).await.unwrap();
        assert!(number != last || !again.counted);
        assert!(is_one_of_each(&store, AMOUNTS).await, "{number}");
    }
}

#[tokio::test]
async fn a_caller_has_room_in_a_batch_that_another_caller_has_filled() {
    let disk = Disk::default();
    let store = store_on(disk.clone());
    disk.hold();
    let first = tokio::spawn(store.report(ones("west", "first", 1_000)));
    eventually("the disk is busy", || async { disk.is_waiting() }).await;
    // Reports of this size are counted before they wait for the disk.
    let many = (0..100).map(|number| store.report(ones("west", &format!("many-{number}"), 1_000)));
    let many: Vec<_> = many.map(tokio::spawn).collect();
    let borrow = |by| store.borrow(&Borrow::session("t1r", "acme").indexer(by), &Terms::default());
    let refused = borrow("west").await.unwrap_err();
    assert_eq!(refused, BorrowError::Unavailable(Unavailable::Overloaded));
    let mut others: Vec<_> = (0..100).map(|_| Box::pin(borrow("east"))).collect();
    for other in &mut others {
        assert!(other.as_mut().now_or_never().is_none(), "it waits for the disk alone");
    }
    disk.release();
    for other in others {
        other.await.unwrap().delivery.complete();
    }
    for report in many.into_iter().chain([first]) {
        assert!(report.await.unwrap().unwrap().counted, "what had begun was counted whole");
    }
}

#[tokio::test]
async fn a_large_report_goes_on_by_small_batches_and_waits_for_each() {
    let disk = Disk::default();
    let store = store_on(disk.clone());
    disk.hold();
    let large = tokio::spawn(store.report(ones("west", "large", 50_000)));
    eventually("the disk is busy", || async { disk.is_waiting() }).await;
    let flushes = disk.flushes();
    disk.release();
    assert!(large.await.unwrap().unwrap().counted);
    // A batch exceeds its bound by the records of one hold at most.
    assert!(disk.flushes() - flushes >= 50_000 / (2_048 + 1_024));
}
