//! The core behind its one mutex, used by several threads under schedules that shuttle chooses. The
//! server is the real ledger.
//!
//! The threads of a pool interleave only while the mutex is free. So guards, callers, the clock and
//! two copies of the pool's task are threads here. A call is in flight from the time when the core
//! returns it until the core has handled the ledger's answer.

use ::lease::{KeptAlive, LeaseId, Ledger, Reason, Refusal, Request, Terms, Timestamp};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::Mutex;
use shuttle::{Config, Runner, thread};

use super::*;

/// The number of schedules that each scheduler tries for one race.
const SCHEDULES: usize = 1500;

/// The depth of the bugs that the PCT scheduler looks for: how many orderings of steps a bug needs.
const DEPTH: usize = 3;

struct Pool {
    state: Mutex<State>,
    server: Mutex<Server>,
    start: Instant,
}

struct State {
    core: Core,
    now: Instant,
    borrows: u128,
}

/// The server's ledger, the number of its grants, and the returned leases in order.
struct Server {
    ledger: Ledger,
    granted: usize,
    returned: Vec<LeaseId>,
}

impl Pool {
    fn new() -> Self {
        let rules = Rules { minimal_life: Some(Duration::ZERO), most_sessions: Some(9), ..RULES };
        let now = Instant::now();
        let core = Core::new(rules, StdRng::seed_from_u64(7), now);
        let ledger = Ledger::new(::lease::Config::default());
        Self {
            state: Mutex::new(State { core, now, borrows: 0 }),
            server: Mutex::new(Server { ledger, granted: 0, returned: Vec::new() }),
            start: now,
        }
    }

    /// Calls `what` under the lock and delivers the notices after it, as the driver's `tell` does.
    fn tell<R>(&self, what: impl FnOnce(&mut Core, Instant) -> R) -> R {
        let (result, notices) = {
            let mut state = self.state.lock().unwrap();
            let now = state.now;
            let result = what(&mut state.core, now);
            let notices = std::iter::from_fn(|| state.core.poll_notice());
            (result, notices.collect::<Vec<_>>())
        };
        notices.into_iter().for_each(Notice::deliver);
        result
    }

    /// Advances the clock to the next timeout if that is at most one keep-alive delay after the
    /// start, so that keep-alives become due and no return is given up.
    fn clock_moves(&self) {
        let mut state = self.state.lock().unwrap();
        let now = state.now;
        let next = state.core.poll_timeout(now).filter(|next| *next <= self.start + DELAY);
        if let Some(next) = next {
            state.now = now.max(next);
        }
    }

    // ---- the pool's task ----

    fn task(&self) {
        loop {
            let (output, over) = self.tell(|core, now| (core.poll_output(now), core.is_drained()));
            match output {
                Some(Output::Batch(batch)) => self.send(batch),
                Some(Output::Call(call)) => self.make(call),
                Some(Output::Notice(notice)) => notice.deliver(),
                Some(Output::OpenStream | Output::CloseStream) => {}
                None if over => return,
                None => thread::yield_now(),
            }
        }
    }

    /// Sends a batch over the stream. The answer names the place of each key that was not extended.
    fn send(&self, batch: Batch) {
        let mut places = HashMap::new();
        for (place, key) in (0..).zip(&batch.keys) {
            match self.heard_keep_alive(key) {
                KeepAliveAnswer::Extended(_) => {}
                answer => drop(places.insert(place, answer)),
            }
        }
        let event = StreamEvent::Answer { batch: batch.number, places };
        self.tell(|core, now| core.handle_stream(event, now));
        assert!(self.tell(|core, _| core.stream.is_open()));
    }

    fn make(&self, call: Call) {
        let sent = self.tell(|_, now| now);
        match call {
            Call::KeepAlive { number, key, .. } => {
                let answer = self.heard_keep_alive(&key);
                self.tell(|core, now| core.handle_keep_alive(number, answer, sent, now));
            }
            Call::Borrow { asked, id, .. } => {
                let grant = self.heard_borrow(&asked, id).unwrap();
                let answer = BorrowAnswer::Granted(grant);
                self.tell(|core, now| core.handle_borrow(asked.number, answer, sent, now));
            }
            Call::Return { number, target, .. } => {
                let outcome = Ok(self.heard_return(&target));
                let answer = ReturnAnswer { outcome, again: true, answered: true };
                self.tell(|core, now| core.handle_return(number, answer, now));
            }
        }
    }

    // ---- the server ----

    fn heard<R>(&self, what: impl FnOnce(&mut Server, Timestamp) -> R) -> R {
        let now = self.tell(|_, now| Timestamp::ZERO + (now - self.start));
        let mut server = self.server.lock().unwrap();
        let result = what(&mut server, now);
        server.ledger.audit().unwrap();
        result
    }

    fn heard_borrow(&self, asked: &Asked, id: BorrowId) -> Result<Grant, Refusal> {
        let request = Request::worker(
            &asked.ids.service,
            &asked.ids.organization,
            &asked.ids.trace,
            most_workers(asked),
        );
        let terms = Terms { ttl: TTL, ..Terms::default() };
        self.heard(|server, now| {
            let grant = server.ledger.borrow(&request.borrow_id(id), &terms, now)?;
            server.granted += 1;
            Ok(Grant { key: grant.id.to_string(), ttl: grant.ttl, minimal_life: None })
        })
    }

    fn heard_keep_alive(&self, key: &str) -> KeepAliveAnswer {
        let id: LeaseId = key.parse().unwrap();
        self.heard(|server, now| {
            assert!(!server.returned.contains(&id), "kept alive after its return");
            match server.ledger.keep_alive(id, None, now) {
                KeptAlive::Extended { ttl } => KeepAliveAnswer::Extended(Some(ttl)),
                KeptAlive::Failed => KeepAliveAnswer::Forgotten,
                KeptAlive::Revoked(_) => KeepAliveAnswer::Revoked(denied()),
            }
        })
    }

    fn heard_return(&self, target: &Target) -> Released {
        let released = self.heard(|server, now| match target {
            Target::Key(key) => {
                let id = key.parse().unwrap();
                assert!(!server.returned.contains(&id), "returned twice");
                server.returned.push(id);
                server.ledger.release(id, None, Duration::ZERO, now)
            }
            Target::Borrow(id) => {
                server.ledger.release_borrow(*id, None, Duration::ZERO, now).unwrap()
            }
        });
        match released {
            ::lease::Released::Returned => Released::Returned,
            ::lease::Released::Missing => Released::Missing,
            ::lease::Released::Lingers { .. } => panic!("no minimal life was asked for"),
        }
    }

    // ---- guards and callers ----

    fn begin(&self, session: Option<&Lease>) -> Result<(Asked, BorrowId), Error> {
        let asked = self.tell(|core, now| match session {
            None => core.begin_session(&ids(), now),
            Some(session) => core.begin_worker(session.number(), &"t2w".into(), 9),
        })?;
        let mut state = self.state.lock().unwrap();
        state.borrows += 1;
        Ok((asked, BorrowId(state.borrows)))
    }

    fn borrow(
        &self,
        session: Option<&Lease>,
        on_error: Option<OnError>,
    ) -> Result<Arc<Lease>, Error> {
        let (asked, id) = self.begin(session)?;
        let sent = self.tell(|_, now| now);
        let grant = self.heard_borrow(&asked, id).unwrap();
        self.tell(|core, now| core.handle_grant(&asked, on_error, grant, sent, now))
    }

    fn release(&self, lease: &Lease) -> Release {
        self.tell(|core, now| core.release(lease.number(), None, now))
    }

    /// Closes the pool and waits until it is drained. Then the server must hold nothing.
    fn close(&self) {
        let mut drained = self.tell(Core::close);
        while drained.try_recv().is_err() {
            thread::yield_now();
        }
        assert!(self.server.lock().unwrap().ledger.is_empty(), "drained, and something is held");
    }

    /// Runs two threads beside the pool's task, and then closes the pool.
    fn race<A: Send, B: Send>(
        &self,
        one: impl FnOnce() -> A + Send,
        other: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        let outcome = thread::scope(|scope| {
            let _hands = [scope.spawn(|| self.task()), scope.spawn(|| self.task())];
            let (one, other) = (scope.spawn(one), scope.spawn(other));
            let outcome = (one.join().unwrap(), other.join().unwrap());
            self.close();
            outcome
        });
        let state = self.state.lock().unwrap();
        assert!(
            state.core.leases.held.is_empty()
                && state.core.counts.as_ref().unwrap().ledger.is_empty()
        );
        assert_eq!(state.core.report().not_returned, 0);
        outcome
    }
}

/// Runs a race under many schedules. A failure prints the schedule that it happened under.
fn explore(race: impl Fn(&Pool) + Send + Sync + Copy + 'static) {
    fn run(scheduler: impl Scheduler + 'static, race: impl Fn(&Pool) + Send + Sync + 'static) {
        let mut config = Config::new();
        config.stack_size = 512 * 1024;
        Runner::new(scheduler, config).run(move || race(&Pool::new()));
    }
    run(RandomScheduler::new(SCHEDULES), race);
    run(PctScheduler::new(DEPTH, SCHEDULES), race);
}

/// The outcome of a return that must be complete by now.
fn known(release: Release) -> Released {
    release.now_or_never().unwrap().unwrap()
}

#[test]
fn a_release_that_races_a_keep_alive_returns_the_lease_once_and_revives_nothing() {
    explore(|pool| {
        let (calls, on_error) = recorded();
        let session = pool.borrow(None, on_error).unwrap();
        let (release, ()) = pool.race(|| pool.release(&session), || pool.clock_moves());
        assert_eq!(known(release), Released::Returned);
        assert_eq!(pool.server.lock().unwrap().granted, 1);
        assert_eq!((session.end_reason(), calls.lock().len()), (None, 0));
    });
}

#[test]
fn a_release_that_races_a_close_returns_session_and_worker_once() {
    explore(|pool| {
        let (calls, on_error) = recorded();
        let session = pool.borrow(None, on_error).unwrap();
        let worker = pool.borrow(Some(&session), None).unwrap();
        let (release, ()) = pool.race(|| pool.release(&session), || pool.close());
        // A release after the close has returned everything finds no lease to return.
        let released = known(release);
        let closed_first = session.end_reason().is_some();
        assert!(released == Released::Returned || closed_first, "{released:?}");
        let returned = [worker.key(), session.key()].map(|key| key.parse().unwrap());
        assert_eq!(pool.server.lock().unwrap().returned, returned, "the worker goes first");
        // The holder is notified of the close once, or not at all if its release came first.
        let heard: Vec<Error> = session.end_reason().cloned().into_iter().collect();
        assert!(heard.is_empty() || heard == [Error::Closed]);
        assert_eq!(*calls.lock(), heard);
    });
}

#[test]
fn a_borrow_that_races_a_close_is_refused_or_ends_with_the_pool() {
    explore(|pool| {
        let (borrowed, ()) = pool.race(|| pool.borrow(None, None), || pool.close());
        match borrowed {
            Ok(session) => assert_eq!(session.end_reason(), Some(&Error::Closed)),
            Err(error) => assert_eq!(error, Error::Closed),
        }
    });
}

#[test]
fn a_borrow_whose_caller_is_dropped_during_a_close_leaves_no_lease() {
    explore(|pool| {
        let Ok((asked, id)) = pool.begin(None) else { panic!("the pool is open") };
        let leaves = || {
            pool.tell(|core, now| {
                core.stray(Target::Borrow(id), TTL, now);
                core.end_borrow(&asked, now);
            });
            pool.close();
        };
        // The borrow may reach the server before its return, after it, or after the close.
        let (grant, ()) = pool.race(|| pool.heard_borrow(&asked, id), leaves);
        assert!(matches!(grant, Ok(_) | Err(Refusal::BorrowEnded)), "{grant:?}");
        assert!(pool.server.lock().unwrap().ledger.is_empty());
    });
}

#[test]
fn a_worker_released_together_with_its_session_is_returned_first() {
    explore(|pool| {
        let session = pool.borrow(None, None).unwrap();
        let worker = pool.borrow(Some(&session), None).unwrap();
        let (one, other) = pool.race(|| pool.release(&worker), || pool.release(&session));
        assert_eq!(known(other), Released::Returned);
        // If the worker was already returned with its session, its own release finds no lease.
        let went_along = worker.end_reason().is_some();
        assert!(known(one) == Released::Returned || went_along);
        let returned = [worker.key(), session.key()].map(|key| key.parse().unwrap());
        assert_eq!(pool.server.lock().unwrap().returned, returned);
    });
}

#[test]
fn a_worker_borrowed_beside_the_release_of_its_session_is_refused_or_goes_back_with_it() {
    explore(|pool| {
        let session = pool.borrow(None, None).unwrap();
        let (worker, release) =
            pool.race(|| pool.borrow(Some(&session), None), || pool.release(&session));
        assert_eq!(known(release), Released::Returned);
        match worker {
            Ok(worker) => assert_eq!(worker.end_reason(), Some(&Error::SessionNotFound)),
            Err(error) => assert_eq!(error, Error::SessionNotFound),
        }
    });
}

#[test]
fn a_revocation_that_races_a_release_is_reported_at_most_once_and_borrows_nothing() {
    explore(|pool| {
        let (calls, on_error) = recorded();
        let session = pool.borrow(None, on_error).unwrap();
        let id = session.key().parse().unwrap();
        assert!(pool.heard(|server, now| server.ledger.revoke(id, Reason::Operator, now)));
        let (release, ()) = pool.race(|| pool.release(&session), || pool.clock_moves());
        assert_eq!(known(release), Released::Missing);
        assert_eq!(pool.server.lock().unwrap().granted, 1);
        let heard: Vec<Error> = session.end_reason().cloned().into_iter().collect();
        assert!(heard.is_empty() || heard == [denied()]);
        assert_eq!(*calls.lock(), heard);
    });
}

#[test]
fn a_release_that_races_a_batch_waits_for_it_and_returns_the_lease_once() {
    explore(|pool| {
        let session = pool.borrow(None, None).unwrap();
        let worker = pool.borrow(Some(&session), None).unwrap();
        pool.tell(|core, now| core.handle_stream(StreamEvent::Opened, now));
        let (release, _) = pool.race(|| pool.release(&session), || pool.release(&worker));
        assert_eq!(known(release), Released::Returned);
        let returned = [worker.key(), session.key()].map(|key| key.parse().unwrap());
        let server = pool.server.lock().unwrap();
        assert_eq!((server.granted, &*server.returned), (2, &returned[..]));
    });
}

#[test]
fn a_pushed_revocation_that_races_a_release_and_a_batch_is_reported_at_most_once() {
    explore(|pool| {
        let (calls, on_error) = recorded();
        let session = pool.borrow(None, on_error).unwrap();
        pool.tell(|core, now| core.handle_stream(StreamEvent::Opened, now));
        let key = session.key();
        let push = || {
            let id = key.parse().unwrap();
            if pool.heard(|server, now| server.ledger.revoke(id, Reason::Operator, now)) {
                let event = StreamEvent::Revoked { key: key.to_string(), reason: denied() };
                pool.tell(|core, now| core.handle_stream(event, now));
            }
        };
        let (_, ()) = pool.race(|| pool.release(&session), push);
        assert_eq!(pool.server.lock().unwrap().granted, 1);
        let heard: Vec<Error> = session.end_reason().cloned().into_iter().collect();
        assert!(heard.is_empty() || heard == [denied()]);
        assert_eq!(*calls.lock(), heard);
    });
}
