//! After any operations and a loss of power at any time, a store has everything that it
//! acknowledged.

use std::time::Duration;

use lease::{KeptAlive, LeaseId, Reason, Refusal, Request, Terms};
use proptest::prelude::*;
use store::testing::{Disk, ManualClock};
use store::{BorrowError, Options, Recovered, Store};

const ORGANIZATIONS: [&str; 3] = ["acme", "globex", "initech"];
const TRACES: [&str; 3] = ["", "trace-a", "trace-b"];

pub(crate) fn open(disk: Disk) -> Store {
    let options = Options { clock: ManualClock::new(), ..Options::default() };
    Recovered::on_backend(disk, options).unwrap().resume().unwrap()
}

fn request(a: u8, b: u8) -> Request<'static> {
    let organization = ORGANIZATIONS[usize::from(a) % 3];
    let max_workers = i64::from(b % 2) * 100;
    Request { max_workers, ..Request::session("t1r", organization) }
        .trace(TRACES[usize::from(b / 2) % 3])
}

/// One acknowledged operation: a borrow, a return, a young return or a revocation.
pub(crate) async fn operate(store: &Store, ids: &mut Vec<LeaseId>, (step, a, b): (u8, u8, u8)) {
    let known = (!ids.is_empty()).then(|| ids[usize::from(a) % ids.len()]);
    match (step % 6, known) {
        (0, Some(id)) => drop(store.release(id, None, Duration::ZERO).await.unwrap()),
        (1, Some(id)) => drop(store.release(id, None, Duration::from_secs(60)).await.unwrap()),
        (2, Some(id)) => drop(store.revoke(id, Reason::Operator).await.unwrap()),
        _ => ids.extend(borrow(store, &request(a, b)).await),
    }
}

/// Borrows a lease; `None` for a worker whose session was revoked.
async fn borrow(store: &Store, request: &Request<'_>) -> Option<LeaseId> {
    match store.borrow(request, &Terms::default()).await {
        Ok(borrowed) => {
            borrowed.delivery.complete();
            Some(borrowed.grant.id)
        }
        Err(BorrowError::Refused(Refusal::Revoked(_))) => None,
        Err(error) => panic!("{error}"),
    }
}

/// For each trace, whether a worker can be borrowed.
async fn gets_workers(store: &Store) -> Vec<bool> {
    let mut gets = Vec::new();
    for (organization, trace) in ORGANIZATIONS.iter().flat_map(|o| TRACES.map(|trace| (o, trace))) {
        let worker = Request::worker("t2w", organization, trace, 100);
        gets.push(borrow(store, &worker).await.is_some());
    }
    gets
}

pub(crate) async fn answers(store: &Store, ids: &[LeaseId]) -> Vec<KeptAlive> {
    let mut answers = Vec::new();
    for &id in ids {
        answers.push(store.keep_alive(id, None).await.unwrap());
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn grants_returns_and_revocations_are_durable_before_their_answers(
        steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..40),
        torn: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::default();
            let store = open(disk.clone());
            let mut ids = Vec::new();
            for step in steps {
                operate(&store, &mut ids, step).await;
            }
            // The power is lost. Any of the writes that were not flushed may have reached the disk.
            let crashed = disk.after_power_loss(|write| torn >> (write % 64) & 1 == 1);
            let before = answers(&store, &ids).await;
            let restarted = open(crashed);
            prop_assert_eq!(answers(&restarted, &ids).await, before);
            let live = |live: Vec<(Box<str>, u64)>| live.iter().map(|(_, leases)| leases).sum();
            let counted: [u64; 2] =
                [live(store.live().await.unwrap()), live(restarted.live().await.unwrap())];
            prop_assert_eq!(counted[0], counted[1]);
            prop_assert_eq!(gets_workers(&restarted).await, gets_workers(&store).await);
            Ok(())
        })?;
    }
}
