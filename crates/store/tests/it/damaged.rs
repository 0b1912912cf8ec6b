//! A damaged store file is refused and not changed, or it has everything that was acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lease::{KeptAlive, LeaseId, Request, Terms};
use proptest::prelude::*;
use store::testing::{Disk, ManualClock, eventually};
use store::{Error, Options, Recovered, Store};

use crate::acknowledged::{answers, open, operate};

const PAGE: usize = 4_096;

/// The numbers of the pages that differ between `before` and `after`.
fn changed_pages(before: &[u8], after: &[u8]) -> Vec<usize> {
    let page = |bytes: &[u8], at: usize| bytes.get(at..at + PAGE).map(<[u8]>::to_vec);
    (0..after.len() / PAGE)
        .filter(|number| page(before, number * PAGE) != page(after, number * PAGE))
        .collect()
}

/// Opens a store that holds `bytes`. Checks that a refusal does not change them.
fn try_open(bytes: &[u8], accept_older_state: bool) -> Result<Recovered, Error> {
    let disk = Disk::with(bytes.to_vec());
    let options = Options { clock: ManualClock::new(), accept_older_state, ..Options::default() };
    let opened = Recovered::on_backend(disk.clone(), options);
    if opened.is_err() {
        assert!(disk.bytes() == bytes, "a file that was refused was changed");
    }
    opened
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_is_refused_or_loses_nothing_that_was_acknowledged(
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..20),
        bits in prop::collection::vec(any::<(bool, prop::sample::Index, prop::sample::Index)>(), 1..40),
        ends_well: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let store = open(disk.clone());
            let mut ids = Vec::new();
            let mut before = disk.bytes();
            for step in steps {
                before = disk.bytes();
                operate(&store, &mut ids, step).await;
            }
            let told = answers(&store, &ids).await;
            if ends_well {
                store.close().unwrap();
            }
            let bytes = disk.bytes();
            let newest = changed_pages(&before, &bytes);
            for (anywhere, page, bit) in bits {
                let bit = match anywhere || newest.is_empty() {
                    true => bit.index(bytes.len() * 8),
                    false => newest[page.index(newest.len())] * PAGE * 8 + bit.index(PAGE * 8),
                };
                if let Ok(found) = try_open(&flipped(&bytes, bit), false) {
                    let found = found.resume().unwrap();
                    prop_assert_eq!(answers(&found, &ids).await, told.clone(), "bit {}", bit);
                }
            }
            Ok(())
        })?;
    }
}

/// The bytes of a store with two leases, the pages that the commit of the second one changed, and
/// both leases.
async fn two_leases() -> (Vec<u8>, Vec<usize>, [LeaseId; 2]) {
    let disk = Disk::default();
    let store = open(disk.clone());
    let first = borrow(&store).await;
    let before = disk.bytes();
    let second = borrow(&store).await;
    let bytes = disk.bytes();
    let pages = changed_pages(&before, &bytes);
    (bytes, pages, [first, second])
}

async fn borrow(store: &Store) -> LeaseId {
    let borrowed = store.borrow(&Request::session("t1r", "acme"), &Terms::default()).await.unwrap();
    borrowed.delivery.complete();
    borrowed.grant.id
}

/// Damaged files in which redb ignores the newest commit and opens the one before it.
async fn stepped_over() -> (Vec<Vec<u8>>, [LeaseId; 2]) {
    let (bytes, pages, ids) = two_leases().await;
    let damages =
        pages.iter().flat_map(|page| (0..PAGE).step_by(16).map(move |at| page * PAGE + at));
    let damages = damages
        .map(|at| flipped(&bytes, at * 8))
        .filter(|bytes| matches!(try_open(bytes, false), Err(Error::Older { .. })));
    (damages.collect(), ids)
}

#[tokio::test]
async fn a_damaged_newest_commit_is_refused_with_what_was_found_and_how_to_go_on() {
    let (damages, _) = stepped_over().await;
    assert!(damages.len() > 20, "only {} of the flips are stepped over", damages.len());
    let error = try_open(&damages[0], false).unwrap_err();
    let Error::Older { found, acknowledged, .. } = error else { panic!("{error:?}") };
    assert_eq!((found, acknowledged), (1, 2));
    let error = error.to_string();
    for part in ["(custom backend)", "batch 2", "batch 1", "--accept-older-state"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    assert!(!error.contains('\n'));
}

#[tokio::test]
async fn an_older_state_that_is_accepted_lacks_the_last_lease_and_uses_no_key_again() {
    let (damages, [first, second]) = stepped_over().await;
    let disk = Disk::with(damages[0].clone());
    let open = |accept_older_state| {
        let options =
            Options { clock: ManualClock::new(), accept_older_state, ..Options::default() };
        Recovered::on_backend(disk.clone(), options)
    };
    let store = open(true).unwrap().resume().unwrap();
    assert!(matches!(store.keep_alive(first, None).await, Ok(KeptAlive::Extended { .. })));
    assert_eq!(store.keep_alive(second, None).await, Ok(KeptAlive::Failed));
    let third = borrow(&store).await;
    assert!(third.serial() > second.serial(), "{third:?} after {second:?}");
    store.close().unwrap();
    // An older state that was accepted once is opened without the option from then on.
    let store = open(false).unwrap().resume().unwrap();
    for id in [first, third] {
        assert!(matches!(store.keep_alive(id, None).await, Ok(KeptAlive::Extended { .. })));
    }
}

#[tokio::test]
async fn a_file_without_a_note_as_the_version_before_left_it_is_opened() {
    let (mut bytes, _, [_, second]) = two_leases().await;
    bytes[320..PAGE].fill(0);
    let store = try_open(&bytes, false).unwrap().resume().unwrap();
    assert!(matches!(store.keep_alive(second, None).await, Ok(KeptAlive::Extended { .. })));
}

#[tokio::test]
async fn a_loss_of_power_is_no_damage_whatever_part_of_a_commit_reached_the_disk() {
    let disk = Disk::default();
    let store = Arc::new(open(disk.clone()));
    let ids = [borrow(&store).await, borrow(&store).await];
    disk.hold();
    let waits = store.clone();
    let unheard = tokio::spawn(async move { borrow(&waits).await });
    eventually("the flush is under way", || async { disk.is_waiting() }).await;
    let mut kept = BTreeSet::new();
    for torn in 0..1_024_usize {
        let crashed = disk.after_power_loss(|write| torn >> (write % 10) & 1 == 1);
        if !kept.insert(crashed.bytes()) {
            continue;
        }
        let store = try_open(&crashed.bytes(), false).unwrap().resume().unwrap();
        for id in ids {
            assert!(matches!(store.keep_alive(id, None).await, Ok(KeptAlive::Extended { .. })));
        }
    }
    assert!(kept.len() > 10, "only {} ways to lose power", kept.len());
    disk.release();
    unheard.await.unwrap();
}

#[test]
fn a_file_of_an_unknown_format_is_not_changed_by_a_byte() {
    let disk = Disk::default();
    drop(Recovered::on_backend(disk.clone(), Options::default()).unwrap());
    let database = redb::Builder::new().create_with_backend(disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, (u64, u64)>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", (99, 0)).unwrap();
    transaction.commit().unwrap();
    // The database was not closed, so opening it needs a repair.
    let crashed = disk.bytes();
    assert!(matches!(try_open(&crashed, false), Err(Error::Format { found: 99, .. })));
    drop(database);
    assert!(matches!(try_open(&disk.bytes(), true), Err(Error::Format { found: 99, .. })));
}

#[test]
fn the_error_about_an_older_state_says_how_much_older_it_is() {
    let error = Error::Older {
        path: "/s.redb".into(),
        found: 3,
        acknowledged: 5,
        older_by: Duration::from_millis(1_500),
    };
    assert!(error.to_string().contains("older by 1.5s"), "{error}");
}
