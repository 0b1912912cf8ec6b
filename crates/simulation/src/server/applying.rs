//! The operations of the store, as `store::shared::granting` and `keeping_alive` do them.

use std::rc::Rc;

use lease::{KeptAlive, LeaseId, Limits, Refusal, Request, Terms};
use tgm_session::Released;
use tgm_session::simulation::{Kept, Target, Wanted};

use super::batch::{To, Wait, Waiter};
use super::{Role, Server};
use crate::event::{Answer, Call, What};
use crate::sim::Sim;
use crate::truth::{ORGANIZATION_LIMITS, ORGANIZATIONS, SERVICE_LIMITS, SERVICES, Scope};

/// The indexer of every call.
const CALLER: Option<&str> = Some("indexer");

impl Server {
    /// Whether calls are for this server itself.
    pub(super) fn leads(&self) -> bool {
        matches!(self.role, Role::Leader { serves: true, .. }) && !self.is_draining
    }

    /// Applies a call of a client, or one that a standby passed on.
    pub(super) fn apply_call(&mut self, sim: &mut Sim, call: &Rc<Call>, to: To) {
        let now = self.now(sim);
        if !self.check(now) {
            return self.send_answer(sim, call, to, Answer::Unavailable);
        }
        let (answer, delivery, wait) = match &call.what {
            What::Borrow { wanted, id } => {
                let (answer, delivery, wait) = self.borrow(sim, wanted, *id);
                (answer, delivery, wait)
            }
            What::KeepAlive { key } => {
                let (kept, wait) = self.keep_alive(sim, key);
                (Answer::Kept(kept), None, wait)
            }
            What::Return { target, minimal_life } => {
                let (answer, wait) = self.give_back(sim, target, *minimal_life);
                (answer, None, wait)
            }
            What::Batch { keys, .. } => {
                let mut places = Vec::new();
                let mut wait = Wait::Nothing;
                for (place, key) in (0..).zip(keys) {
                    let (kept, waits) = self.keep_alive(sim, key);
                    if !matches!(kept, Kept::Extended(_)) {
                        places.push((place, kept));
                        wait = waits;
                    }
                }
                (Answer::Places(places), None, wait)
            }
        };
        let waiter = Waiter { call: call.clone(), to, answer, delivery };
        match wait {
            Wait::Nothing => self.answer(sim, waiter),
            Wait::Gathering => self.gathering.push(waiter),
            Wait::Committing => match &mut self.committing {
                Some(batch) => batch.waiters.push(waiter),
                None => self.answer(sim, waiter),
            },
        }
    }

    fn borrow(
        &mut self,
        sim: &mut Sim,
        wanted: &Wanted,
        borrow_id: lease::BorrowId,
    ) -> (Answer, Option<LeaseId>, Wait) {
        let service = usize::from(wanted.most_workers > 0);
        let organization = usize::from(*wanted.organization == *ORGANIZATIONS[1]);
        let request = Request {
            indexer: CALLER,
            service: SERVICES[service],
            organization: ORGANIZATIONS[organization],
            api_key: "",
            trace: &wanted.trace,
            max_workers: wanted.most_workers,
            borrow_id: Some(borrow_id),
        };
        let limits = Limits {
            service: Some(SERVICE_LIMITS[service]),
            organization: Some(ORGANIZATION_LIMITS[service]),
            api_key: None,
        };
        let ttl = [sim.settings.session_ttl, sim.settings.worker_ttl][service];
        let terms = Terms { limits, ttl, ..Terms::default() };
        let (outcome, wait) = self.apply(sim, |ledger, now| ledger.borrow(&request, &terms, now));
        let grant = match outcome {
            Ok(grant) => grant,
            Err(Refusal::Denied(_)) => return (Answer::Refused, None, wait),
            Err(Refusal::BorrowEnded) => return (Answer::IdUsed, None, wait),
            Err(_) => return (Answer::Unavailable, None, wait),
        };
        let id = grant.id;
        if grant.replayed {
            self.note_kept_alive(id);
        } else {
            let trace = u64::from_str_radix(&wanted.trace, 16).unwrap_or_default();
            let scope = Scope { service, organization, trace };
            if let Some(row) = self.leadership.term() {
                sim.truth.grant(id, scope, row.leader);
            }
        }
        let takes_back = if grant.replayed {
            let answers = self.undelivered.get_mut(&id.serial());
            answers.map(|answers| *answers += 1).is_some()
        } else {
            self.borrow_ids.insert(id.serial(), borrow_id);
            self.undelivered.insert(id.serial(), 1).is_none()
        };
        let minimal_life = terms.minimal_life;
        (Answer::Granted { id, ttl: grant.ttl, minimal_life }, takes_back.then_some(id), wait)
    }

    fn keep_alive(&mut self, sim: &mut Sim, key: &str) -> (Kept, Wait) {
        let Ok(id) = key.parse::<LeaseId>() else { return (Kept::Forgotten, Wait::Nothing) };
        match self.apply(sim, |ledger, now| ledger.keep_alive(id, CALLER, now)) {
            (KeptAlive::Extended { ttl }, _) => {
                self.note_kept_alive(id);
                sim.truth.counts.kept_alive += 1;
                (Kept::Extended(Some(ttl)), Wait::Nothing)
            }
            (_, wait) if self.is_writable(self.now(sim)) => (Kept::Forgotten, wait),
            _ => (Kept::Unavailable, Wait::Nothing),
        }
    }

    fn give_back(
        &mut self,
        sim: &mut Sim,
        target: &Target,
        minimal_life: std::time::Duration,
    ) -> (Answer, Wait) {
        let (released, wait) = match target {
            Target::Key(key) => {
                let Ok(id) = key.parse::<LeaseId>() else {
                    return (Answer::Returned(Released::Missing), Wait::Nothing);
                };
                self.apply(sim, |ledger, now| Ok(ledger.release(id, CALLER, minimal_life, now)))
            }
            Target::Borrow(id) => {
                self.apply(sim, |ledger, now| ledger.release_borrow(*id, CALLER, minimal_life, now))
            }
        };
        let answer = match released {
            Ok(lease::Released::Missing) => Answer::Returned(Released::Missing),
            Ok(lease::Released::Returned) => Answer::Returned(Released::Returned),
            Ok(lease::Released::Lingers { .. }) => Answer::Returned(Released::Lingers),
            Err(_) => Answer::Unavailable,
        };
        (answer, wait)
    }

    /// The answer with this grant was handed to the transport.
    pub(super) fn delivered(&mut self, id: LeaseId) {
        self.undelivered.remove(&id.serial());
        self.borrow_ids.remove(&id.serial());
    }

    /// The answer with this grant is lost.
    pub(super) fn take_back(&mut self, sim: &mut Sim, id: LeaseId) {
        match self.undelivered.get_mut(&id.serial()) {
            // An answer to another try was sent.
            None => return,
            Some(1) => drop(self.undelivered.remove(&id.serial())),
            Some(answers) => {
                *answers -= 1;
                return;
            }
        }
        let borrow_id = self.borrow_ids.remove(&id.serial());
        if self.is_writable(self.now(sim)) {
            self.apply(sim, |ledger, now| ledger.undo(id, borrow_id, now));
        }
    }
}
