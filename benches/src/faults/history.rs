//! The history of what callers ask and are told, and the promises that are checked against it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use lease::LeaseId;
use serde::{Deserialize, Serialize};

use crate::policy::limit;

/// A time on `CLOCK_MONOTONIC`, which all processes of a machine share, in microseconds.
pub(crate) type Time = u64;

/// The most violations that are reported.
const TOLD: usize = 20;

/// Something that a caller did or was told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) at: Time,
    pub(crate) caller: u32,
    /// The number of the borrow. It also names the lease that was granted.
    pub(crate) borrow: u64,
    pub(crate) what: What,
}

/// What happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum What {
    /// The caller asks for a lease; for a worker, under the session that this borrow got.
    Asks { service: String, organization: String, under: Option<u64> },
    /// The server grants it.
    Granted { key: String },
    /// A limit refuses it.
    Denied,
    /// The borrow failed otherwise.
    Failed { kind: String, message: String },
    /// The lease was kept alive so often when the caller looked.
    Kept { times: u64 },
    /// The library borrowed the lease again, because the server did not have it.
    BorrowedAgain { key: String },
    /// The library ended the lease.
    Ended { reason: String },
    /// The caller returns the lease.
    Returns,
    /// The server has answered the return. `missing` tells that it did not have the lease.
    Returned { missing: bool },
    /// The return failed.
    NotReturned { message: String },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, caller, borrow, what } = self;
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let seconds = *at as f64 / 1e6;
        write!(f, "{seconds:.6}  caller {caller:<4} borrow {borrow:<8} ")?;
        match what {
            // A key is a secret.
            What::Granted { key } => write!(f, "granted as lease {}", serial(key)),
            What::BorrowedAgain { key } => write!(f, "borrowed again as lease {}", serial(key)),
            What::Asks { service, organization, under } => {
                write!(f, "asks for {service} of {organization}")?;
                under.map_or(Ok(()), |session| write!(f, " under borrow {session}"))
            }
            other => write!(f, "{other:?}"),
        }
    }
}

fn serial(key: &str) -> u64 {
    key.parse::<LeaseId>().map_or(0, |id| id.serial())
}

/// What is known of one borrow.
#[derive(Debug)]
pub(crate) struct Borrow {
    pub(crate) service: String,
    pub(crate) organization: String,
    under: Option<u64>,
    pub(crate) asked: Time,
    granted: Option<Time>,
    pub(crate) key: Option<String>,
    kept_at: Time,
    /// When the caller stopped to believe in the lease.
    pub(crate) over: Option<Time>,
    /// When the server acknowledged the return.
    pub(crate) returned: Option<Time>,
}

/// What the faults of this time allow to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// Calls may fail while there is no leader.
    #[default]
    Unplanned,
    /// No call may fail.
    Planned,
}

/// All events, in their order.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: Vec<Event>,
    borrows: BTreeMap<u64, Borrow>,
    /// The believed leases of each scope.
    believed: HashMap<(String, String), u64>,
    under: HashMap<u64, u64>,
    serials: HashMap<u64, u64>,
    pub(crate) strictness: Strictness,
    /// A lease may end if it was not kept alive for so long.
    believed_for: Time,
    pub(crate) calls: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
}

impl History {
    /// An empty history. A lease that was kept alive within `believed_for` must be there.
    pub(crate) fn new(believed_for: Time) -> Self {
        Self { believed_for, ..Self::default() }
    }

    /// Adds the next event, and checks what it tells.
    pub(crate) fn add(&mut self, event: Event) {
        let (at, number) = (event.at, event.borrow);
        self.events.push(event.clone());
        match event.what {
            What::Asks { service, organization, under } => {
                let borrow = Borrow {
                    service,
                    organization,
                    under,
                    asked: at,
                    granted: None,
                    key: None,
                    kept_at: at,
                    over: None,
                    returned: None,
                };
                self.borrows.insert(number, borrow);
            }
            What::Granted { key } => {
                self.calls += 1;
                self.believe(at, number, key);
            }
            What::Denied => self.calls += 1,
            What::Failed { kind, .. } => {
                self.calls += 1;
                self.fail(number, format!("borrow {kind}"));
            }
            What::Kept { .. } => {
                if let Some(borrow) = self.borrows.get_mut(&number) {
                    borrow.kept_at = at;
                }
            }
            What::BorrowedAgain { key } => {
                if self.was_kept(at, number) {
                    let what = "a lease that was kept alive was not there any more";
                    self.violate(what, &[number]);
                }
                self.see_serial(number, &key);
                if let Some(borrow) = self.borrows.get_mut(&number) {
                    borrow.key = Some(key);
                }
            }
            What::Ended { .. } => {
                *self.failures.entry("lease ended".to_owned()).or_default() += 1;
                if self.was_kept(at, number) || self.strictness == Strictness::Planned {
                    self.violate("a lease ended that was kept alive", &[number]);
                }
                self.disbelieve(at, number);
            }
            What::Returns => self.disbelieve(at, number),
            What::Returned { missing } => {
                self.calls += 1;
                // In an unplanned change the answer to an earlier attempt may have been lost.
                if missing && self.strictness == Strictness::Planned {
                    self.violate("a lease that was kept alive was gone at its return", &[number]);
                }
                if let Some(borrow) = self.borrows.get_mut(&number) {
                    borrow.returned = Some(at);
                }
            }
            What::NotReturned { .. } => {
                self.calls += 1;
                self.fail(number, "return".to_owned());
            }
        }
    }

    fn fail(&mut self, number: u64, kind: String) {
        if self.strictness == Strictness::Planned {
            self.violate("a call failed", &[number]);
        }
        *self.failures.entry(kind).or_default() += 1;
    }

    /// Whether the lease was kept alive recently enough to be there, and its session too.
    fn was_kept(&self, at: Time, number: u64) -> bool {
        self.borrows.get(&number).is_some_and(|borrow| {
            at.saturating_sub(borrow.kept_at) < self.believed_for
                && borrow.under.is_none_or(|session| self.was_kept(at, session))
        })
    }

    fn see_serial(&mut self, number: u64, key: &str) {
        if let Some(other) = self.serials.insert(serial(key), number) {
            self.violate("two leases have one serial number", &[other, number]);
        }
    }

    fn believe(&mut self, at: Time, number: u64, key: String) {
        self.see_serial(number, &key);
        let Some(borrow) = self.borrows.get_mut(&number) else { return };
        (borrow.granted, borrow.key, borrow.kept_at) = (Some(at), Some(key), at);
        let scope = (borrow.service.clone(), borrow.organization.clone());
        let most = limit(&scope.0);
        let under = borrow.under;
        let believed = self.believed.entry(scope.clone()).or_default();
        *believed += 1;
        if *believed > most {
            let what =
                format!("{believed} leases of {} of {}, and the limit is {most}", scope.0, scope.1);
            let held = self.live().filter(|(_, borrow)| {
                (&borrow.service, &borrow.organization) == (&scope.0, &scope.1)
            });
            let held: Vec<u64> = held.map(|(number, _)| number).collect();
            self.violate(&what, &held);
        }
        if let Some(session) = under {
            let workers = self.under.entry(session).or_default();
            *workers += 1;
            if *workers > u64::from(crate::policy::WORKERS) {
                self.violate("a session has more workers than it may have", &[session, number]);
            }
        }
    }

    fn disbelieve(&mut self, at: Time, number: u64) {
        let Some(borrow) = self.borrows.get_mut(&number) else { return };
        if borrow.granted.is_none() || borrow.over.replace(at).is_some() {
            return;
        }
        let scope = (borrow.service.clone(), borrow.organization.clone());
        *self.believed.entry(scope).or_default() -= 1;
        if let Some(session) = borrow.under {
            *self.under.entry(session).or_default() -= 1;
        }
    }

    /// The leases that callers believe in.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u64, &Borrow)> {
        let live = self.borrows.iter();
        live.filter(|(_, borrow)| borrow.granted.is_some() && borrow.over.is_none())
            .map(|(number, borrow)| (*number, borrow))
    }

    /// The leases whose return was acknowledged since `start`, the latest first.
    pub(crate) fn returned_since(&self, start: Time) -> impl Iterator<Item = (u64, &Borrow)> {
        let borrows = self.borrows.iter().rev();
        borrows
            .filter(move |(_, borrow)| borrow.returned.is_some_and(|at| at >= start))
            .map(|(number, borrow)| (*number, borrow))
    }

    pub(crate) fn borrow(&self, number: u64) -> Option<&Borrow> {
        self.borrows.get(&number)
    }

    /// When the first lease was granted that was asked for after `start`.
    pub(crate) fn first_grant_after(&self, start: Time) -> Option<Time> {
        let borrows = self.borrows.values().rev().take_while(|borrow| borrow.asked > start);
        borrows.filter_map(|borrow| borrow.granted).min()
    }

    /// How many leases of `service` are believed in.
    pub(crate) fn believed_of(&self, service: &str) -> u64 {
        self.believed.iter().filter(|((of, _), _)| of == service).map(|(_, count)| count).sum()
    }

    /// Adds a violation, with the events of these borrows.
    pub(crate) fn violate(&mut self, what: &str, borrows: &[u64]) {
        if self.violations.len() >= TOLD {
            return;
        }
        let mut text = format!("violation: {what}\n");
        for event in self.events.iter().filter(|event| borrows.contains(&event.borrow)) {
            // Keep-alives are many, and the last one is told by the others.
            if !matches!(event.what, What::Kept { .. }) || borrows.len() <= 2 {
                text += &format!("  {event}\n");
            }
        }
        self.violations.push(text);
    }

    /// Forgets what is over, and the counts.
    pub(crate) fn begin(&mut self, strictness: Strictness) {
        self.strictness = strictness;
        self.borrows.retain(|_, borrow| borrow.over.is_none());
        let borrows = &self.borrows;
        self.events.retain(|event| borrows.contains_key(&event.borrow));
        self.calls = 0;
        self.failures.clear();
        self.violations.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        History::new(10_000_000)
    }

    /// Adds an event of the borrow `borrow`, a second after the one before.
    fn add(history: &mut History, borrow: u64, what: What) {
        let at = history.events.last().map_or(0, |event| event.at) + 1_000_000;
        history.add(Event { at, caller: 0, borrow, what });
    }

    fn grant(history: &mut History, borrow: u64) {
        let (service, organization) = ("t1r".to_owned(), "org-0".to_owned());
        add(history, borrow, What::Asks { service, organization, under: None });
        let slot = u32::try_from(borrow).unwrap();
        add(
            history,
            borrow,
            What::Granted { key: LeaseId::new(slot, borrow, [0; 12]).to_string() },
        );
    }

    #[test]
    fn one_lease_above_a_limit_is_a_violation_and_one_in_the_place_of_another_is_not() {
        let mut history = history();
        let most = limit("t1r");
        (1..=most).for_each(|borrow| grant(&mut history, borrow));
        add(&mut history, 1, What::Returns);
        grant(&mut history, most + 1);
        assert_eq!(history.violations, Vec::<String>::new());
        grant(&mut history, most + 2);
        assert_eq!(history.violations.len(), 1);
        assert!(history.violations[0].contains("the limit is"), "{:?}", history.violations);
    }

    #[test]
    fn a_lease_may_end_only_if_it_was_not_kept_alive_and_never_in_a_planned_change() {
        let ended = || What::Ended { reason: "lost".to_owned() };
        for (kept, strictness, violations) in [
            (true, Strictness::Unplanned, 1),
            (false, Strictness::Unplanned, 0),
            (false, Strictness::Planned, 1),
        ] {
            let mut history = history();
            history.strictness = strictness;
            grant(&mut history, 1);
            for borrow in 2..=6 {
                add(&mut history, borrow, What::Denied);
                add(&mut history, borrow, What::Denied);
                if kept {
                    add(&mut history, 1, What::Kept { times: borrow });
                }
            }
            add(&mut history, 1, ended());
            assert_eq!(history.violations.len(), violations, "{:?}", history.violations);
        }
    }

    #[test]
    fn a_worker_may_end_with_its_session() {
        for (session_is_kept, violations) in [(true, 1), (false, 0)] {
            let mut history = history();
            grant(&mut history, 1);
            (0..10).for_each(|_| add(&mut history, 9, What::Denied));
            if session_is_kept {
                add(&mut history, 1, What::Kept { times: 1 });
            }
            let (service, organization) = ("t2w".to_owned(), "org-0".to_owned());
            add(&mut history, 2, What::Asks { service, organization, under: Some(1) });
            add(&mut history, 2, What::Granted { key: LeaseId::new(2, 2, [0; 12]).to_string() });
            add(&mut history, 2, What::Ended { reason: "lost".to_owned() });
            assert_eq!(history.violations.len(), violations, "{:?}", history.violations);
        }
    }

    #[test]
    fn a_serial_number_that_is_used_twice_is_a_violation() {
        let mut history = history();
        grant(&mut history, 1);
        let key = LeaseId::new(7, 1, [1; 12]).to_string();
        add(&mut history, 2, What::Granted { key });
        assert_eq!(history.violations.len(), 1);
    }

    #[test]
    fn a_failed_call_is_a_violation_only_in_a_planned_change() {
        let failed = || What::Failed { kind: "unavailable".to_owned(), message: String::new() };
        let mut history = history();
        add(&mut history, 1, failed());
        assert!(history.violations.is_empty());
        history.begin(Strictness::Planned);
        add(&mut history, 1, failed());
        assert_eq!((history.violations.len(), history.calls), (1, 1));
    }
}
