//! The audit list agrees with what happened, even after returns at the same time and after a kill.

use lease::{KeptAlive, LeaseId, Reason, Request, Terms};
use proptest::prelude::*;
use tgm_session_server::Policy;
use tgm_session_server::operator::{By, OperatorError};
use tgm_session_server::store::{AuditNote, Options, Order, Recovered, Store};
use wire::worker::return_worker_response::Status as Returned;

use crate::harness::{ManualClock, ROOMY, TestServer, eventually, session};
use store::testing::Disk;
use store::testing::entry;

const DISABLED: &str = "[services.t1r]\n[organizations.acme]\ndisabled = true";

fn recovered(disk: &Disk) -> Recovered {
    let options = Options { clock: ManualClock::new(), ..Options::default() };
    Recovered::on_backend(disk.clone(), options).unwrap()
}

async fn borrow(store: &Store, leases: usize) -> Vec<LeaseId> {
    let request = Request::session("t1r", "acme");
    let borrows: Vec<_> = (0..leases).map(|_| store.borrow(&request, &Terms::default())).collect();
    let mut ids = Vec::new();
    for borrowed in futures_util::future::join_all(borrows).await {
        let borrowed = borrowed.unwrap();
        ids.push(borrowed.grant.id);
        borrowed.delivery.complete();
    }
    ids
}

#[tokio::test]
async fn an_operator_ends_a_session_or_writes_nothing_down_when_it_is_returned_at_the_same_time() {
    for returned_first in [false, true] {
        let disk = Disk::default();
        let server = TestServer::on_disk(ROOMY, disk.clone(), ManualClock::new()).await;
        let mut client = server.client();
        let held = client.borrow(session("acme")).await;
        let page = server.running.store().leases(Default::default(), Order::Oldest, None, 1).await;
        let number = page.unwrap().leases[0].number;
        disk.hold();
        let operator = server.running.operator().clone();
        let by = By { from: "test", note: "" };
        let (mut client, key) = (server.client(), held.clone());
        let give_back = async move { client.give_back(&key).await };
        let revoke = async move { operator.revoke(number, by).await };
        let gone = || async { server.live().await == 0 };
        let (returned, revoked) = if returned_first {
            let returned = tokio::spawn(give_back);
            eventually("the session is returned", gone).await;
            (returned, tokio::spawn(revoke))
        } else {
            // A session that an operator has ended cannot be returned, however long the disk takes.
            let revoked = tokio::spawn(revoke);
            eventually("the disk is asked", || async { disk.is_waiting() }).await;
            (tokio::spawn(give_back), revoked)
        };
        tokio::task::yield_now().await;
        disk.release();
        let (returned, revoked) = (returned.await.unwrap(), revoked.await.unwrap());
        let said: Vec<_> = server.running.store().audit(None, 10);
        if returned_first {
            assert_eq!(returned, Returned::Returned);
            let gone = OperatorError::NotFound(format!("there is no lease {number}"));
            assert_eq!((revoked.unwrap_err(), said), (gone, Vec::new()));
        } else {
            assert_eq!((returned, revoked.unwrap().ended), (Returned::MissingKey, 1));
            assert_eq!((said.len(), said[0].ended), (1, 1));
        }
    }
}

/// Whether an operator has ended this lease.
async fn was_ended(store: &Store, id: LeaseId) -> bool {
    store.keep_alive(id, None).await == Ok(KeptAlive::Revoked(Reason::Operator.into()))
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Return(usize),
    Revoke(usize),
    /// Lets the disk write all waiting changes.
    Flush,
}

const SESSIONS: usize = 8;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..SESSIONS).prop_map(Step::Return),
        (0..SESSIONS).prop_map(Step::Revoke),
        Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_a_kill_the_list_names_exactly_the_sessions_that_operators_ended(
        steps in prop::collection::vec(step(), 1..24),
        torn: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let store = recovered(&disk).resume().unwrap();
            let ids = borrow(&store, SESSIONS).await;
            disk.hold();
            for step in steps {
                match step {
                    Step::Return(at) => {
                        drop(store.release(ids[at], None, std::time::Duration::ZERO));
                    }
                    Step::Revoke(at) => {
                        let action = ids[at].number().to_string();
                        drop(store.revoke_number(ids[at].number(), Reason::Operator, entry(&action)));
                    }
                    Step::Flush => {
                        disk.release();
                        // The answer to this record waits for all changes before it.
                        store.record(None, entry("flushed")).await.unwrap();
                        disk.hold();
                    }
                }
            }
            let crashed = disk.after_power_loss(|write| torn >> (write % 64) & 1 == 1);
            disk.release();
            let store = recovered(&crashed).resume().unwrap();
            let said = store.audit(None, 100);
            for id in ids {
                let number = id.number().to_string();
                let entries = said.iter().filter(|entry| *entry.action == *number);
                let ended: u64 = entries.map(|entry| entry.ended).sum();
                prop_assert_eq!(ended, u64::from(was_ended(&store, id).await), "{}", number);
            }
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_time_finds_in_the_entry_as_many_ended_leases_as_are_gone() {
    const LEASES: usize = 9_000;
    for anew in [false, true] {
        let disk = Disk::default();
        let store = recovered(&disk).resume().unwrap();
        borrow(&store, LEASES).await;
        let disabled = Policy::parse(DISABLED, "test.toml").unwrap().policy;
        let noted = if anew {
            AuditNote::New(entry("loaded the policy file"))
        } else {
            AuditNote::Existing(
                store.record(None, entry("disabled organization acme")).await.unwrap(),
            )
        };
        disk.hold();
        let enforcing = tokio::spawn(store.enforce(&disabled, noted));
        let mut partly = 0;
        while !enforcing.is_finished() {
            let crashed = disk.after_power_loss(|_| false);
            let before = disk.flushes();
            disk.release_one();
            let crashed = recovered(&crashed);
            let gone = LEASES - crashed.leases();
            let said = crashed.resume().unwrap().audit(None, 1);
            assert_eq!(said.first().map_or(0, |entry| entry.ended), gone as u64);
            partly += usize::from(gone > 0 && gone < LEASES);
            eventually("the disk takes more, or all is done", || async {
                disk.flushes() > before || enforcing.is_finished()
            })
            .await;
        }
        let enforced = enforcing.await.unwrap().unwrap();
        assert_eq!((enforced.ended, enforced.entry), (LEASES, Some(1)));
        assert_eq!(store.audit(None, 1)[0].ended, LEASES as u64);
        assert!(partly > 0, "the revocation came in parts");
        disk.release();
        store.close().unwrap();
    }
}
