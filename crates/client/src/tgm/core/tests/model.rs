//! Random sequences of borrows, releases, keep-alives, faults and restarts against a simple server.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

/// A session server without limits.
#[derive(Default)]
struct Server {
    live: BTreeMap<String, bool>,
    by_borrow: BTreeMap<BorrowId, Option<String>>,
    revoked: HashSet<String>,
    granted: u64,
}

impl Server {
    fn borrow(&mut self, id: BorrowId, is_worker: bool) -> BorrowAnswer {
        let key = match self.by_borrow.get(&id) {
            None => {
                self.granted += 1;
                format!("key-{}", self.granted)
            }
            Some(Some(key)) if self.live.contains_key(key) => key.clone(),
            Some(_) => {
                let ended = "the lease of this borrow id has ended";
                return BorrowAnswer::Refused { error: Error::invalid(ended), key: None };
            }
        };
        self.by_borrow.insert(id, Some(key.clone()));
        self.live.insert(key.clone(), is_worker);
        BorrowAnswer::Granted(Grant { key, ttl: TTL, minimal_life: None })
    }

    fn restart(&mut self) {
        self.live.clear();
        self.by_borrow.clear();
    }

    fn keep_alive(&mut self, key: &str) -> KeepAliveAnswer {
        if self.revoked.contains(key) {
            return KeepAliveAnswer::Revoked(denied());
        }
        match self.live.contains_key(key) {
            true => KeepAliveAnswer::Extended(None),
            false => KeepAliveAnswer::Forgotten,
        }
    }

    fn give_back(&mut self, target: &Target) -> Released {
        let key = match target {
            Target::Key(key) => Some(key.to_string()),
            // A borrow with this id that arrives later is refused, because its id is used up.
            Target::Borrow(id) => self.by_borrow.insert(*id, None).flatten(),
        };
        match key.and_then(|key| self.live.remove(&key)) {
            Some(_) => Released::Returned,
            None => Released::Missing,
        }
    }
}

struct World {
    bench: Bench,
    server: Server,
    /// Guards of sessions, each with those of its workers.
    guards: Vec<(Arc<Lease>, Vec<Arc<Lease>>)>,
    calls: Vec<Call>,
    /// Keys for which a return was sent.
    sent_back: HashSet<String>,
    borrows: u128,
}

impl World {
    fn borrow(&mut self, session: Option<usize>) {
        let asked = match session {
            None => self.bench.begin(),
            Some(at) => {
                let number = self.guards[at].0.number();
                self.bench.core.begin_worker(number, &"t2w".into(), 9)
            }
        };
        let Ok(asked) = asked else { return };
        self.borrows += 1;
        let id = BorrowId(u128::MAX - self.borrows);
        let BorrowAnswer::Granted(grant) = self.server.borrow(id, asked.worker.is_some()) else {
            panic!("a new borrow id is refused")
        };
        let now = self.bench.now;
        let lease = self.bench.core.handle_grant(&asked, None, grant, now, now);
        match (lease, session) {
            (Ok(lease), None) => self.guards.push((lease, Vec::new())),
            (Ok(lease), Some(at)) => self.guards[at].1.push(lease),
            (Err(error), _) => panic!("an open pool refused a grant: {error}"),
        }
    }

    /// Advances the clock by `passed` and takes every call that is due.
    fn pass(&mut self, passed: Duration) {
        self.bench.now += passed;
        for target in self.past() {
            // Given up after one TTL. By now, the server's own TTL has ended the lease.
            self.server.give_back(&target);
        }
        while let Some(call) = self.bench.poll_call() {
            match &call {
                Call::KeepAlive { number, key, .. } => {
                    assert!(!self.sent_back.contains(&**key), "kept alive after its return");
                    assert!(!self.is_busy(*number), "two calls for one lease");
                }
                Call::Borrow { asked, .. } => {
                    assert!(!self.is_busy(asked.number), "two calls for one lease");
                }
                Call::Return { number, target, .. } => {
                    assert!(!self.is_busy(*number), "returned beside another call");
                    if let Target::Key(key) = target {
                        self.sent_back.insert(key.to_string());
                    }
                }
            }
            self.calls.push(call);
        }
        self.bench.tell();
    }

    /// Returns the targets of the returns that are given up by now.
    fn past(&self) -> Vec<Target> {
        let returning = self.bench.core.leases.returning.values();
        let past = returning.filter(|returning| returning.give_up <= self.bench.now);
        past.filter_map(|returning| returning.target.clone()).collect()
    }

    fn is_busy(&self, lease: u64) -> bool {
        self.calls.iter().any(|call| {
            let (Call::KeepAlive { number, .. }
            | Call::Borrow { asked: Asked { number, .. }, .. }
            | Call::Return { number, .. }) = call;
            *number == lease
        })
    }

    /// Answers a call. The server handles the call if `heard`. The core gets the server's answer if
    /// `answered`, and a fault otherwise.
    fn answer(&mut self, at: usize, heard: bool, answered: bool) {
        let now = self.bench.now;
        let core = &mut self.bench.core;
        match self.calls.swap_remove(at) {
            Call::KeepAlive { number, key, .. } => {
                let answer = if heard { Some(self.server.keep_alive(&key)) } else { None };
                let answer = answer.filter(|_| answered);
                core.handle_keep_alive(
                    number,
                    answer.unwrap_or(KeepAliveAnswer::Fault(away())),
                    now,
                    now,
                );
            }
            Call::Borrow { id, asked, .. } => {
                let answer = heard.then(|| self.server.borrow(id, asked.worker.is_some()));
                let fault = BorrowAnswer::Fault { error: away(), sent: true };
                let answer = answer.filter(|_| answered).unwrap_or(fault);
                core.handle_borrow(asked.number, answer, now, now);
            }
            Call::Return { number, target, .. } => {
                let outcome = heard.then(|| self.server.give_back(&target)).filter(|_| answered);
                let outcome = outcome.ok_or_else(away);
                let failed = outcome.is_err();
                let answer = ReturnAnswer { outcome, again: true, answered };
                let waiting = core.leases.returning.len();
                core.handle_return(number, answer, now);
                if failed && core.leases.returning.len() < waiting {
                    // Given up after one TTL. By now, the server's own TTL has ended the lease.
                    self.server.give_back(&target);
                }
            }
        }
        self.bench.tell();
    }

    fn step(&mut self, what: u8, pick: usize) {
        let session = pick % self.guards.len().max(1);
        match what {
            0 => self.borrow(None),
            1 if !self.guards.is_empty() => self.borrow(Some(session)),
            2 if !self.guards.is_empty() => {
                let (lease, _workers) = self.guards.swap_remove(session);
                self.bench.release(&lease).now_or_never();
            }
            3 if !self.guards.is_empty() => {
                if let Some(lease) = self.guards[session].1.pop() {
                    self.bench.release(&lease).now_or_never();
                }
            }
            4 | 5 => self.pass(Duration::from_millis(pick as u64 * 97 % 9000)),
            6..=9 if !self.calls.is_empty() => self.answer(pick % self.calls.len(), true, true),
            10 if !self.calls.is_empty() => self.answer(pick % self.calls.len(), true, false),
            11 if !self.calls.is_empty() => self.answer(pick % self.calls.len(), false, false),
            12 if pick.is_multiple_of(4) => self.server.restart(),
            13 if pick.is_multiple_of(4) => {
                self.server.revoked.extend(self.server.live.keys().nth(pick / 4).cloned());
            }
            _ => {}
        }
    }

    /// The keys behind all guards: of leases that live, and of leases that ended.
    fn keys(&self) -> (HashSet<String>, HashSet<String>) {
        let (mut alive, mut ended) = (HashSet::new(), HashSet::new());
        for lease in
            self.guards.iter().flat_map(|(session, workers)| workers.iter().chain([session]))
        {
            let keys = if lease.end_reason().is_none() { &mut alive } else { &mut ended };
            keys.insert(lease.key().to_string());
            // An unanswered borrow of a lost lease is returned when the guard is released.
            let held = &self.bench.core.leases.held[&lease.number()];
            if let Some(Target::Borrow(id)) = held.target() {
                ended.extend(self.server.by_borrow.get(&id).cloned().flatten());
            }
        }
        (alive, ended)
    }

    /// Lets 200 seconds pass while the server answers every call.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.pass(Duration::from_secs(1));
            while !self.calls.is_empty() {
                self.answer(0, true, true);
                self.pass(Duration::ZERO);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// After any steps: no lease has two calls at once, and no lease is kept alive after its
    /// return. In the end, the server holds what the guards hold, and nothing once the guards are
    /// released.
    #[test]
    fn in_the_end_the_server_holds_what_the_guards_hold_and_then_nothing(
        steps in prop::collection::vec((0u8..14, 0usize..1000), 1..120),
    ) {
        let mut world = World {
            bench: Bench::new(Rules { most_sessions: Some(1000), ..RULES }),
            server: Server::default(),
            guards: Vec::new(),
            calls: Vec::new(),
            sent_back: HashSet::new(),
            borrows: 0,
        };
        for (what, pick) in steps {
            world.step(what, pick);
        }
        world.settle();
        let (alive, ended) = world.keys();
        for key in &alive {
            prop_assert!(world.server.live.contains_key(key), "the server does not hold {}", key);
        }
        for key in world.server.live.keys() {
            prop_assert!(alive.contains(key) || ended.contains(key), "nobody holds {}", key);
        }
        for (session, _) in std::mem::take(&mut world.guards) {
            world.bench.release(&session).now_or_never();
        }
        world.settle();
        prop_assert!(world.server.live.is_empty(), "left: {:?}", world.server.live);
        prop_assert!(world.bench.core.leases.held.is_empty());
        prop_assert!(world.bench.core.counts.as_ref().unwrap().ledger.is_empty());
        drop(world.bench.core.close(world.bench.now));
        prop_assert!(world.bench.core.is_drained());
    }
}
