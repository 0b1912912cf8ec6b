//! What really happened, and the checks of it.
//!
//! The model knows which changes the database has. A position counts them on the present branch of its
//! history: when a stale replica is promoted, the history goes back to an earlier position, and what
//! came later is lost. A lease is *excused* when the database has lost its grant or its end, and only
//! then: the checks do not hold for it until a leader that remembers has written it again.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use lease::{Change, LeaseId};
use store::fleet::LeaderId;

use crate::clock::Time;

/// The services: sessions and workers.
pub(crate) const SERVICES: [&str; 2] = ["t1r", "t2w"];

/// The organizations.
pub(crate) const ORGANIZATIONS: [&str; 2] = ["acme", "umbrella"];

/// The most leases of each service.
pub(crate) const SERVICE_LIMITS: [u64; 2] = [4, 6];

/// The most leases of each organization and service.
pub(crate) const ORGANIZATION_LIMITS: [u64; 2] = [3, 4];

/// The most workers of a trace.
pub(crate) const TRACE_LIMIT: u32 = 2;

/// What a lease counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    pub(crate) service: usize,
    pub(crate) organization: usize,
    pub(crate) trace: u64,
}

/// A leader as it was when it read the journal.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    /// The ids of its terms since then.
    pub(crate) ids: Vec<LeaderId>,
    /// When the database read the journal for it.
    pub(crate) read_at: Time,
}

#[derive(Debug)]
struct Lease {
    scope: Scope,
    by: LeaderId,
    /// The position of its grant, and when the database had it; none where it is not on the branch.
    granted: Option<u64>,
    granted_at: Time,
    /// The position of its end.
    ended: Option<u64>,
    /// Whether the database ever had its grant, and an end or a date of its end.
    was_granted: bool,
    was_ended: bool,
    was_acknowledged: bool,
    was_returned: bool,
    /// The database has lost its grant or its end.
    is_excused: bool,
}

#[derive(Debug)]
struct Belief {
    client: usize,
    number: u64,
    key: Arc<str>,
    id: LeaseId,
    until: Time,
    /// The last keep-alive was answered by a leader whose takeover the database has lost.
    is_ghost: bool,
}

/// What happened, as counted for the report.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Grants that clients learned of.
    pub grants: u64,
    /// Returns that clients learned of.
    pub returns: u64,
    /// Keep-alives that succeeded.
    pub kept_alive: u64,
    /// Terms of leaders that served.
    pub terms: u64,
    /// Calls that a standby passed on.
    pub forwarded: u64,
    /// Promotions of a stale replica that lost something.
    pub promotions: u64,
    /// Journals that a leader wrote again.
    pub rewritten: u64,
    /// Acknowledged grants that the database lost for good.
    pub grants_lost: u64,
    /// Times that the leadership lapsed and came back.
    pub regained: u64,
    /// Takeovers that a lock blocked.
    pub blocked: u64,
    /// Commits whose outcome was unknown.
    pub resolved: u64,
}

impl Counts {
    /// Adds those of another seed.
    pub fn add(&mut self, other: Self) {
        self.grants += other.grants;
        self.returns += other.returns;
        self.kept_alive += other.kept_alive;
        self.terms += other.terms;
        self.forwarded += other.forwarded;
        self.promotions += other.promotions;
        self.rewritten += other.rewritten;
        self.grants_lost += other.grants_lost;
        self.regained += other.regained;
        self.blocked += other.blocked;
        self.resolved += other.resolved;
    }
}

/// Everything that happened, and whether a promise was broken.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    pub(crate) counts: Counts,
    /// Batches that the database committed.
    pub(crate) commits: u64,
    leases: HashMap<LeaseId, Lease, FixedState>,
    serials: HashMap<u64, LeaseId, FixedState>,
    beliefs: Vec<Belief>,
    /// Terms of which the database has lost the takeover.
    lost_terms: Vec<LeaderId>,
    is_changed: bool,
    violation: Option<String>,
}

impl Truth {
    /// Notes that a promise was broken.
    pub(crate) fn violate(&mut self, what: impl FnOnce() -> String) {
        self.violation.get_or_insert_with(what);
    }

    /// Whether the database has lost the takeover of this term.
    pub(crate) fn is_lost(&self, term: LeaderId) -> bool {
        self.lost_terms.contains(&term)
    }

    // ---- what leaders do in memory ----

    /// A leader has granted a lease in memory.
    pub(crate) fn grant(&mut self, id: LeaseId, scope: Scope, by: LeaderId) {
        let lease = Lease {
            scope,
            by,
            granted: None,
            granted_at: 0,
            ended: None,
            was_granted: false,
            was_ended: false,
            was_acknowledged: false,
            was_returned: false,
            is_excused: false,
        };
        if self.leases.insert(id, lease).is_some() {
            self.violate(|| format!("the key of lease {} was granted twice", id.serial()));
        }
    }

    // ---- what the database does ----

    /// The database has committed a batch.
    pub(crate) fn committed(&mut self, changes: &[Change], position: u64, now: Time) {
        self.commits += 1;
        for change in changes {
            match change {
                Change::Granted(granted) => {
                    if let Some(lease) = self.leases.get_mut(&granted.id) {
                        (lease.granted, lease.granted_at) = (Some(position), now);
                        lease.was_granted = true;
                    }
                }
                Change::Lingers { id, .. } => {
                    if let Some(lease) = self.leases.get_mut(id) {
                        lease.was_ended = true;
                    }
                }
                Change::Ended { id, .. } => {
                    if let Some(lease) = self.leases.get_mut(id) {
                        (lease.ended, lease.was_ended) = (Some(position), true);
                    }
                }
                _ => {}
            }
        }
    }

    /// The history of the database goes back to `position`; `terms` are lost with it.
    pub(crate) fn go_back(&mut self, position: u64, terms: Vec<LeaderId>) {
        self.counts.promotions += 1;
        self.lost_terms.extend(terms);
        self.is_changed = true;
        for lease in self.leases.values_mut() {
            if lease.granted.is_some_and(|at| at > position) {
                lease.granted = None;
                lease.is_excused = true;
            }
            if lease.ended.is_some_and(|at| at > position) {
                lease.ended = None;
                lease.is_excused = true;
            }
        }
    }

    /// A leader has written the journal again from its memory, which holds the leases `memory` (and
    /// whether they linger), over what the leader `before` left.
    pub(crate) fn rewritten(
        &mut self,
        (reader, may_overwrite): (&Reader, bool),
        before: LeaderId,
        memory: &[(LeaseId, bool)],
        position: u64,
        now: Time,
    ) {
        self.counts.rewritten += 1;
        self.is_changed = true;
        let was_lost = may_overwrite && reader.ids.iter().any(|id| self.lost_terms.contains(id));
        if !reader.ids.contains(&before) {
            // It may not know yet that it is deposed.
            self.lost_terms.push(before);
        }
        let mut overwritten = None;
        for (id, lease) in &mut self.leases {
            if memory.iter().any(|(held, _)| held == id) || lease.ended.is_some() {
                continue;
            }
            let is_own = reader.ids.contains(&lease.by);
            if !is_own && (!lease.was_granted || lease.granted_at >= reader.read_at) {
                // The leader never knew of it.
                if lease.granted.take().is_none() {
                    continue;
                }
                lease.is_excused = true;
                if lease.was_acknowledged && !was_lost {
                    overwritten = Some(id.serial());
                }
            } else {
                lease.ended = Some(position);
                (lease.was_granted, lease.was_ended) = (true, true);
            }
        }
        if let Some(serial) = overwritten {
            self.violate(|| format!("the rewriting lost the grant of lease {serial}"));
        }
        let mut returned = None;
        for (id, lingers) in memory {
            if let Some(lease) = self.leases.get_mut(id) {
                if !lease.was_granted {
                    lease.granted_at = now;
                }
                lease.granted.get_or_insert(position);
                // An end that another leader committed is lost.
                let is_overwritten = lease.ended.take().is_some() || lease.was_returned;
                if is_overwritten && !lease.is_excused && !was_lost {
                    returned = Some(id.serial());
                }
                lease.is_excused = is_overwritten || lease.is_excused && lease.was_ended;
                lease.was_granted = true;
                lease.was_ended |= lingers;
            }
        }
        if let Some(serial) = returned {
            self.violate(|| format!("the rewriting lost the return of lease {serial}"));
        }
    }

    /// A leader has read the journal, and found these leases.
    pub(crate) fn read(&mut self, found: impl Iterator<Item = LeaseId>) {
        for id in found {
            if self.leases.get(&id).is_some_and(|lease| lease.was_returned && !lease.is_excused) {
                self.violate(|| format!("the return of lease {} was lost", id.serial()));
            }
        }
    }

    // ---- what clients learn ----

    /// A client learns of a grant.
    pub(crate) fn acknowledge_grant(&mut self, id: LeaseId) {
        self.counts.grants += 1;
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.was_acknowledged = true;
        let (was_granted, is_excused) = (lease.was_granted, lease.is_excused);
        if !was_granted {
            self.violate(|| format!("the grant of lease {} was never committed", id.serial()));
        }
        if is_excused {
            return;
        }
        if let Some(before) = self.serials.insert(id.serial(), id)
            && before != id
            && !self.leases.get(&before).is_some_and(|lease| lease.is_excused)
        {
            self.violate(|| format!("the serial number {} was used twice", id.serial()));
        }
    }

    /// A client learns that a lease was returned.
    pub(crate) fn acknowledge_return(&mut self, id: LeaseId, is_over: bool) {
        self.counts.returns += 1;
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.was_returned |= is_over;
        if !lease.was_ended {
            self.violate(|| format!("the return of lease {} was never committed", id.serial()));
        }
    }

    /// An answer leaves a leader that says that it holds no such lease.
    pub(crate) fn is_missing(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get(&id) else { return };
        let lives = lease.granted.is_some() && !lease.was_ended;
        if lease.was_acknowledged && lives && !lease.is_excused {
            self.violate(|| format!("the grant of lease {} was lost", id.serial()));
        }
    }

    /// What a client believes to hold now: the number of each lease, its key, and until when. The answer
    /// that it has just got may come from a ghost.
    pub(crate) fn believe(&mut self, client: usize, is_ghost: bool, now: &[(u64, Arc<str>, Time)]) {
        let found = |belief: &Belief| {
            now.iter()
                .find(|(number, key, _)| belief.number == *number && Arc::ptr_eq(key, &belief.key))
        };
        let mut is_changed = false;
        self.beliefs.retain_mut(|belief| {
            if belief.client != client {
                return true;
            }
            let Some((_, _, until)) = found(belief) else { return false };
            if *until > belief.until {
                belief.is_ghost = is_ghost;
                is_changed = true;
            }
            belief.until = *until;
            true
        });
        for (number, key, until) in now {
            let is_known = |belief: &Belief| {
                belief.client == client && belief.number == *number && Arc::ptr_eq(key, &belief.key)
            };
            if self.beliefs.iter().any(is_known) {
                continue;
            }
            let Ok(id) = key.parse() else { continue };
            let (number, key, until) = (*number, key.clone(), *until);
            self.beliefs.push(Belief { client, number, key, id, until, is_ghost });
            is_changed = true;
        }
        self.is_changed |= is_changed;
    }

    /// Whether some promise is broken at `now`: what, in words.
    pub(crate) fn check(&mut self, now: Time) -> Option<String> {
        // Time alone only ends beliefs.
        if std::mem::take(&mut self.is_changed) {
            self.check_limits(now);
        }
        self.violation.take()
    }

    fn check_limits(&mut self, now: Time) {
        let mut services = [0; 2];
        let mut organizations = [[0; 2]; 2];
        let mut traces: Vec<(u64, u32)> = Vec::new();
        let live = self.beliefs.iter().filter(|belief| belief.until > now && !belief.is_ghost);
        for belief in live {
            let Some(lease) = self.leases.get(&belief.id) else { continue };
            if lease.granted.is_none() && lease.is_excused {
                continue;
            }
            let Scope { service, organization, trace } = lease.scope;
            services[service] += 1;
            organizations[organization][service] += 1;
            if service == 1 {
                match traces.iter_mut().find(|(of, _)| *of == trace) {
                    Some((_, count)) => *count += 1,
                    None => traces.push((trace, 1)),
                }
            }
        }
        for service in 0..2 {
            let (name, most) = (SERVICES[service], SERVICE_LIMITS[service]);
            let believed = services[service];
            if believed > most {
                self.violate(|| format!("{believed} leases of {name} are believed, of {most}"));
            }
            for (organization, counts) in ORGANIZATIONS.iter().zip(organizations) {
                let (believed, most) = (counts[service], ORGANIZATION_LIMITS[service]);
                if believed > most {
                    self.violate(|| {
                        format!(
                            "{believed} leases of {name} of {organization} are believed, of {most}"
                        )
                    });
                }
            }
        }
        if let Some((trace, count)) = traces.iter().find(|(_, count)| *count > TRACE_LIMIT) {
            self.violate(|| {
                format!("{count} workers of trace {trace} are believed, of {TRACE_LIMIT}")
            });
        }
    }

    /// Counts the acknowledged grants that the database lost and nobody wrote again.
    pub(crate) fn finish(&mut self) {
        let lost = self.leases.values();
        let lost = lost.filter(|it| it.was_acknowledged && it.granted.is_none());
        self.counts.grants_lost = lost.count() as u64;
    }
}
