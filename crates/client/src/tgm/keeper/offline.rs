//! What the pool admits by itself while its server is away (`on-unavailable=allow`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use lease::BorrowId;

use super::{Asked, Keeper, Role};
use crate::error::{Error, Scope};
use crate::held::Lease;
use crate::request::OnError;
use crate::tgm::answer::{Grant, UNTOLD_TTL};

/// Most sessions of one organization and service that are admitted when the URL says nothing.
const MOST_SESSIONS: u64 = 10;

impl Keeper {
    /// Whether the server is known to be away, and has been for `outage`: then nobody waits to see
    /// it once more.
    pub(crate) fn fails_open(&self, outage: Duration, now: Instant) -> bool {
        self.link.is_down_since(outage, now)
    }

    /// Admits a caller's borrow without the server, which is asked for it when it is back.
    ///
    /// `borrowing` names the borrow if the server may have granted it without being heard: it is
    /// asked under that name then, so that one lease costs one slot.
    pub(crate) fn admitted(
        &mut self,
        asked: &Asked,
        session: Option<u64>,
        on_error: Option<OnError>,
        borrowing: Option<BorrowId>,
        now: Instant,
    ) -> Result<Arc<Lease>, Error> {
        self.may_hold(session)?;
        self.below_own_ceiling(asked, session)?;
        let key = format!("offline-{}", self.numbers + 1);
        let grant = Grant { key, ttl: UNTOLD_TTL, minimal_life: None };
        let (number, lease) = self.hold(asked, session, on_error, grant);
        if let Some(held) = self.held.get_mut(&number) {
            held.forgotten = true;
            held.borrowing = borrowing;
            held.doubt = borrowing.is_some();
        }
        self.heartbeat.insert_forgotten(number, session.is_some(), UNTOLD_TTL, now, &mut self.rng);
        if session.is_some() {
            // After its session, whose turn comes with the first answer.
            self.forgotten(number, now, now);
        }
        self.stats.failed_open += 1;
        tracing::warn!(
            service = &*asked.service,
            organization = &*asked.organization,
            trace = &*asked.trace,
            "the session server is away; admitted without it"
        );
        Ok(lease)
    }

    fn below_own_ceiling(&self, asked: &Asked, session: Option<u64>) -> Result<(), Error> {
        let Some(session) = session else {
            let pool = (asked.organization.clone(), asked.service.clone());
            let max = self.rules.most_sessions.unwrap_or(MOST_SESSIONS);
            // The borrow itself is among them.
            let active = self.sessions.get(&pool).map_or(0, |active| active - 1);
            let scope = Scope::Pool;
            return if active < max {
                Ok(())
            } else {
                Err(Error::ConcurrentStreamLimitExceeded { active, max, scope })
            };
        };
        let workers = match self.held.get(&session).map(|held| &held.role) {
            Some(Role::Session { workers, .. }) => workers.iter(),
            _ => return Err(Error::SessionNotFound),
        };
        let same = |worker: &&u64| {
            self.held.get(worker).is_some_and(|held| held.lease.ids().service == asked.service)
        };
        let active = workers.filter(same).count() as u64;
        let max = u64::try_from(asked.max_workers).unwrap_or(0);
        if active < max {
            Ok(())
        } else {
            Err(Error::WorkersLimitExceeded { active, max, scope: Scope::Trace })
        }
    }
}
