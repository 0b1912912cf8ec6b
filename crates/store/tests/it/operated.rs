//! Overrides and audit entries are as durable as leases, bounded, and listed in order.

use std::time::Duration;

use futures_util::future::join_all;
use lease::{KeptAlive, Request, Terms};
use policy::Policy;
use policy::overrides::{
    AuditEntry, MAX_AUDIT, MAX_OVERRIDES, OverrideChange, OverrideKey, Subject,
};
use proptest::prelude::*;
use redb::{ReadableDatabase as _, ReadableTableMetadata as _};
use store::testing::{Disk, ManualClock, entry, eventually, note, set};
use store::{AuditNote, Enforced, MAX_PAGE, Options, RecordError, Recovered, Store, Unavailable};

fn open(disk: &Disk) -> Store {
    let options = Options { clock: ManualClock::new(), ..Options::default() };
    Recovered::on_backend(disk.clone(), options).unwrap().resume().unwrap()
}

fn memory() -> Store {
    let options = Options { clock: ManualClock::new(), ..Options::default() };
    Recovered::memory(options).unwrap().resume().unwrap()
}

fn numbers(entries: &[AuditEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.number).collect()
}

#[tokio::test]
async fn overrides_and_audit_entries_survive_a_restart() {
    let disk = Disk::default();
    let store = open(&disk);
    let disable = OverrideChange {
        key: OverrideKey { subject: Subject::ApiKey, id: "key-1".into(), service: None },
        value: set("", 1).value,
    };
    let clear = OverrideChange { value: None, ..set("globex", 0) };
    for change in [Some(set("acme", 40)), Some(set("globex", 3)), Some(disable.clone()), None] {
        store.record(change, entry("did something")).await.unwrap();
    }
    assert_eq!(store.record(Some(clear), entry("cleared globex")).await, Ok(5));
    let (overrides, audit) = (store.overrides(), store.audit(None, 100));
    let keys: Vec<_> = overrides.keys().cloned().collect();
    assert_eq!(keys, [set("acme", 40).key, disable.key]);
    assert_eq!(numbers(&audit), [5, 4, 3, 2, 1]);
    store.close().unwrap();

    let store = open(&disk);
    assert_eq!(store.overrides(), overrides);
    assert_eq!(store.audit(None, 100), audit);
    // Numbers rise across restarts too.
    assert_eq!(store.record(None, entry("one more")).await, Ok(6));
}

#[tokio::test]
async fn an_override_and_its_entry_are_durable_before_the_answer_and_never_one_without_the_other() {
    for torn in 0..16_usize {
        let disk = Disk::default();
        let store = open(&disk);
        store.record(Some(set("acme", 1)), entry("acknowledged")).await.unwrap();
        disk.hold();
        let unheard = tokio::spawn(store.record(Some(set("late", 2)), entry("late")));
        eventually("the flush is under way", || async { disk.is_waiting() }).await;
        assert!(!unheard.is_finished());
        let crashed = disk.after_power_loss(|write| (write * 7 + torn).is_multiple_of(3));
        disk.release();
        assert_eq!(unheard.await.unwrap(), Ok(2));

        let store = open(&crashed);
        let overrides = store.overrides();
        assert_eq!(overrides.get(&set("acme", 1).key), set("acme", 1).value.as_ref());
        let told = store.audit(None, 10);
        match overrides.get(&set("late", 2).key) {
            Some(_) => assert_eq!(note(&told), ["late", "acknowledged"]),
            None => assert_eq!(note(&told), ["acknowledged"]),
        }
    }
}

#[tokio::test]
async fn an_operators_change_is_durable_only_with_the_leases_before_it() {
    let disk = Disk::default();
    let store = open(&disk);
    disk.hold();
    let lease = store.borrow(&Request::session("t1r", "acme"), &Terms::default());
    let recorded = store.record(Some(set("acme", 0)), entry("admit nobody"));
    disk.release();
    recorded.await.unwrap();
    // Everything that was applied before the entry is durable, too.
    let crashed = disk.after_power_loss(|_| false);
    let id = {
        let lease = lease.await.unwrap();
        let id = lease.grant.id;
        lease.delivery.complete();
        id
    };
    let kept = open(&crashed).keep_alive(id, None).await;
    assert!(matches!(kept, Ok(KeptAlive::Extended { .. })), "{kept:?}");
}

#[tokio::test]
async fn the_audit_list_is_bounded_on_the_disk_too_and_its_numbers_go_on() {
    let disk = Disk::default();
    let store = open(&disk);
    let most = MAX_AUDIT as u64;
    let recorded: Vec<_> =
        (0..most + 5).map(|number| store.record(None, entry(&number.to_string()))).collect();
    assert!(join_all(recorded).await.into_iter().eq((1..=most + 5).map(Ok)));
    // Entry 5 was forgotten. A note about it does not bring it back.
    assert_eq!(end_one(&store, AuditNote::Existing(5)).await, Some(5));
    for store in [store, open_after(&disk)] {
        assert_eq!(numbers(&store.audit(None, 2)), [most + 5, most + 4]);
        assert_eq!(numbers(&store.audit(Some(8), MAX_PAGE)), [7, 6]);
        assert_eq!(store.audit(None, usize::MAX).len(), MAX_PAGE);
        let mut walked = 0;
        let mut before = None;
        while let Some(last) = store.audit(before, MAX_PAGE).last() {
            walked += store.audit(before, MAX_PAGE).len();
            before = Some(last.number);
        }
        assert_eq!(walked, MAX_AUDIT);
        store.close().unwrap();
    }
    assert_eq!(open(&disk).record(None, entry("the next")).await, Ok(most + 6));
    let database = redb::Builder::new().create_with_backend(disk).unwrap();
    let table = redb::TableDefinition::<u64, &[u8]>::new("audit");
    let rows = database.begin_read().unwrap().open_table(table).unwrap();
    assert_eq!(rows.len().unwrap(), most);
}

/// Opens a copy of the disk, because the disk itself is still in use.
fn open_after(disk: &Disk) -> Store {
    open(&disk.after_power_loss(|_| false))
}

#[tokio::test]
async fn overrides_are_bounded_and_what_is_there_can_still_be_changed() {
    let store = memory();
    for number in 0..MAX_OVERRIDES {
        store.record(Some(set(&format!("org-{number}"), 1)), entry("set")).await.unwrap();
    }
    let refused = store.record(Some(set("one-more", 1)), entry("set")).await;
    assert_eq!(refused, Err(RecordError::Full { max: MAX_OVERRIDES }));
    let latest = MAX_OVERRIDES as u64;
    assert_eq!(store.audit(None, 1)[0].number, latest, "nothing was recorded");
    assert_eq!(store.record(Some(set("org-0", 2)), entry("set")).await, Ok(latest + 1));
    let clear = OverrideChange { value: None, ..set("org-1", 0) };
    assert_eq!(store.record(Some(clear), entry("cleared")).await, Ok(latest + 2));
    assert_eq!(store.record(Some(set("one-more", 1)), entry("set")).await, Ok(latest + 3));
    assert_eq!(store.overrides().len(), MAX_OVERRIDES);
}

#[tokio::test]
async fn overrides_that_were_read_do_not_change() {
    let store = memory();
    store.record(Some(set("acme", 1)), entry("set")).await.unwrap();
    let held = store.overrides();
    store.record(Some(set("acme", 2)), entry("set")).await.unwrap();
    assert_eq!(held.values().next().unwrap().value, 1);
    assert_eq!(store.overrides().values().next().unwrap().value, 2);
}

#[tokio::test]
async fn a_store_that_failed_records_nothing() {
    let disk = Disk::default();
    let store = open(&disk);
    disk.fail();
    let failed = store.record(Some(set("acme", 1)), entry("set")).await;
    assert_eq!(failed, Err(RecordError::Unavailable(Unavailable::Failed)));
    let refused = store.record(Some(set("globex", 1)), entry("set")).await;
    assert_eq!(refused, Err(RecordError::Unavailable(Unavailable::Failed)));
    assert!(!store.overrides().contains_key(&set("globex", 1).key));
}

#[tokio::test]
async fn the_revision_rises_with_every_change_and_with_no_keep_alive() {
    let store = memory();
    let mut latest = store.revision();
    let mut rose = |store: &Store| std::mem::replace(&mut latest, store.revision()) < latest;
    let lease = store.borrow(&Request::session("t1r", "acme"), &Terms::default()).await.unwrap();
    let id = lease.grant.id;
    lease.delivery.complete();
    assert!(rose(&store), "a borrow");
    store.keep_alive(id, None).await.unwrap();
    store.state("t1r", "acme").await.unwrap();
    store.tick();
    assert!(!rose(&store), "a keep-alive");
    store.record(None, entry("did something")).await.unwrap();
    assert!(rose(&store), "an entry of the audit list");
    store.enforce(&Policy::built_in(), AuditNote::New(entry("looked"))).await.unwrap();
    assert!(rose(&store), "an entry of what ended nobody");
    store.release(id, None, Duration::ZERO).await.unwrap();
    assert!(rose(&store), "a return");
}

/// Borrows one session and ends it, with `noted` as the audit note. Returns the number of the
/// entry.
async fn end_one(store: &Store, noted: AuditNote) -> Option<u64> {
    let request = Request::session("t1r", "disabled");
    store.borrow(&request, &Terms::default()).await.unwrap().delivery.complete();
    let disabled = "[services.t1r]\n[organizations.disabled]\ndisabled = true";
    let disabled = Policy::parse(disabled, "test.toml").unwrap().policy;
    let Enforced { ended, entry } = store.enforce(&disabled, noted).await.unwrap();
    assert_eq!(ended, 1);
    entry
}

/// Sets or clears an override or ends a lease, and waits for the answer.
async fn operate(store: &Store, (step, a, b): (u8, u8, u8)) {
    let change = set(&format!("org-{}", a % 4), b.into());
    let change = match step % 4 {
        0 => {
            let noted = match b % 3 {
                0 => AuditNote::None,
                1 => AuditNote::Existing((a % 16).into()),
                _ => AuditNote::New(entry("ended one")),
            };
            end_one(store, noted).await;
            return;
        }
        1 => OverrideChange { value: None, ..change },
        _ => change,
    };
    store.record(Some(change), entry(&format!("{step} {a} {b}"))).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_operation_of_operators_is_durable_before_its_answer(
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..30),
        torn: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let store = open(&disk);
            for step in steps {
                operate(&store, step).await;
            }
            let crashed = disk.after_power_loss(|write| torn >> (write % 64) & 1 == 1);
            let restarted = open(&crashed);
            prop_assert_eq!(restarted.overrides(), store.overrides());
            prop_assert_eq!(restarted.audit(None, 100), store.audit(None, 100));
            Ok(())
        })?;
    }
}
