//! The store within the process: one ledger behind one mutex, with a journal or without.
//!
//! An operation takes the lock, reads the clock, applies itself to the ledger and hands what
//! changed to the batch that is gathering; then it lets go of the lock and waits for that batch.
//! One thread commits batches, one after another: while one is being flushed, the next gathers,
//! so calls at the same time share a flush. Which batch a call waits for is decided under the
//! lock, so batches hold changes in the order applied.

mod recovered;
mod shared;

use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use lease::{BorrowId, KeptAlive, LeaseId, PoolUse, Reason, Released, Request, Terms};
use parking_lot::Mutex;

pub use recovered::{Options, Recovered};
use shared::{Shared, Wait};

use super::{BorrowError, Borrowed, Store, Unavailable};
use crate::error::Error;
use crate::policy::Policy;

/// The store within the process, behind `memory:` and `file:PATH`.
///
/// After the first write or flush that fails, every change is refused until a restart, while
/// keep-alives of leases go on; see [`Unavailable::Failed`].
///
/// [`Embedded::close`] commits what is pending and says how it went. Dropping the store does the
/// same and says nothing.
#[derive(Debug)]
pub struct Embedded {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Embedded {
    fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared), threads: Mutex::new(Vec::new()) }
    }

    fn spawn(
        &self,
        name: &'static str,
        run: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<(), Error> {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&shared))
            .map_err(|source| Error::System { action: "start a thread of the store", source })?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Reads the clock and ends what has ended, as the store's own thread does many times a
    /// second.
    pub fn tick(&self) {
        self.shared.tick();
    }

    /// Refuses further changes, commits what is pending and lets go of the file. Blocks until then.
    ///
    /// It says once how that went: a store that is closed already closes well.
    ///
    /// # Errors
    ///
    /// [`Error::StoreFailed`] when a write or a flush failed, now or earlier.
    pub fn close(&self) -> Result<(), Error> {
        self.shared.close();
        let threads = std::mem::take(&mut *self.threads.lock());
        if threads.is_empty() {
            return Ok(());
        }
        let panicked = threads.into_iter().filter_map(|thread| thread.join().err()).count() > 0;
        if panicked || self.shared.has_failed() {
            let problem = "changes since the failure were not kept".to_owned();
            return Err(Error::StoreFailed { problem });
        }
        Ok(())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the store closed badly");
        }
    }
}

async fn durable(wait: Wait) -> Result<(), Unavailable> {
    match wait {
        Some(batch) => batch.durable().await,
        None => Ok(()),
    }
}

impl Store for Embedded {
    async fn borrow(
        &self,
        request: &Request<'_>,
        terms: &Terms<'_>,
    ) -> Result<Borrowed, BorrowError> {
        let (outcome, wait) = self.shared.grant(request, terms)?;
        // The promise is in `outcome` already: whoever stops waiting here gives the lease back.
        durable(wait).await?;
        let (grant, delivery) = outcome?;
        Ok(Borrowed { grant, delivery })
    }

    async fn keep_alive(
        &self,
        id: LeaseId,
        caller: Option<&str>,
    ) -> Result<KeptAlive, Unavailable> {
        let (answer, wait) = self.shared.keep_alive(id, caller)?;
        durable(wait).await?;
        Ok(answer)
    }

    async fn release(
        &self,
        id: LeaseId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> Result<Released, Unavailable> {
        let (answer, wait) =
            self.shared.change(|ledger, now| ledger.release(id, caller, minimal_life, now))?;
        durable(wait).await?;
        Ok(answer)
    }

    async fn release_borrow(
        &self,
        borrow_id: BorrowId,
        caller: Option<&str>,
        minimal_life: Duration,
    ) -> Result<Released, Unavailable> {
        let (answer, wait) = self
            .shared
            .change(|ledger, now| ledger.release_borrow(borrow_id, caller, minimal_life, now))?;
        durable(wait).await?;
        Ok(answer)
    }

    async fn state(&self, service: &str, organization: &str) -> Result<PoolUse, Unavailable> {
        let (answer, wait) =
            self.shared.change(|ledger, now| ledger.state(service, organization, now))?;
        durable(wait).await?;
        Ok(answer)
    }

    async fn revoke(&self, id: LeaseId, reason: Reason) -> Result<bool, Unavailable> {
        let (answer, wait) = self.shared.change(|ledger, now| ledger.revoke(id, reason, now))?;
        durable(wait).await?;
        Ok(answer)
    }

    async fn enforce(&self, policy: &Policy) -> Result<usize, Unavailable> {
        let wall = self.shared.clock.wall();
        let (answer, wait) = self.shared.change(|ledger, now| {
            let spent: HashSet<&str> = policy
                .budgets()
                .filter(|(organization, budgets)| {
                    ledger.spent(organization, budgets, wall).is_some()
                })
                .map(|(organization, _)| organization)
                .collect();
            ledger.revoke_matching(now, |holder| {
                policy.disabled(holder.organization, holder.api_key).or_else(|| {
                    (spent.contains(holder.organization) && !policy.observes(holder.service))
                        .then_some(Reason::BudgetSpent)
                })
            })
        })?;
        durable(wait).await?;
        Ok(answer)
    }

    async fn live(&self) -> Result<Vec<(Box<str>, u64)>, Unavailable> {
        Ok(self.shared.look(|ledger| {
            ledger.leases_by_service().map(|(service, leases)| (service.into(), leases)).collect()
        }))
    }

    fn ready(&self) -> Result<(), Unavailable> {
        self.shared.sound()
    }
}
