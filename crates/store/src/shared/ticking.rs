//! The clock thread: it advances store time and removes leases that have ended.

use std::time::Duration;

use parking_lot::MutexGuard;

use super::{BUSY_PENDING, FULL_PENDING, Shared, State};

/// How often the clock thread reads the clock and removes leases that have ended.
const TICK: Duration = Duration::from_millis(50);

/// How often to check whether the disk is still busy, while leases wait to be removed.
const CHECK_AGAIN_AFTER: Duration = Duration::from_millis(5);

impl Shared {
    /// Runs the clock thread until the store closes.
    pub(crate) fn run_clock(&self) {
        let mut state = self.state.lock();
        while !state.closing {
            self.tick_locked(&mut state);
            if state.ledger.has_backlog() && !state.applying {
                // The next part follows as soon as the disk is no longer busy, and a tick later at
                // the latest.
                for _ in 0..TICK.as_millis() / CHECK_AGAIN_AFTER.as_millis() {
                    if state.pending.len() <= BUSY_PENDING || state.closing {
                        break;
                    }
                    self.closing.wait_for(&mut state, CHECK_AGAIN_AFTER);
                }
                // A thread that waits for the lock gets it first.
                MutexGuard::bump(&mut state);
            } else {
                self.closing.wait_for(&mut state, TICK);
            }
        }
    }

    pub(crate) fn tick(&self) {
        self.tick_locked(&mut self.state.lock());
    }

    /// Ticks until no lease that has ended is left. All calls that arrived until now count as handled.
    pub(crate) fn tick_handled(&self) {
        let mut state = self.state.lock();
        loop {
            let now = self.now(&mut state);
            state.time.mark_handled(now);
            self.tick_locked(&mut state);
            let can_go_on = !state.applying && state.role.check(&*self.clock).is_ok();
            if !state.ledger.has_backlog() || state.pending.len() > BUSY_PENDING || !can_go_on {
                return;
            }
            MutexGuard::bump(&mut state);
        }
    }

    fn tick_locked(&self, state: &mut State) {
        self.check_disk(state);
        // No lease expires while this server does not lead.
        if state.applying || state.role.check(&*self.clock).is_err() {
            return;
        }
        let now = self.now(state);
        if self.serving_threads.probe() {
            state.time.mark_handled(state.probed_at);
            state.probed_at = now;
        }
        self.apply_below(FULL_PENDING, state, |ledger, now| ledger.expire(now));
        if state.stamp_is_due() {
            self.work.notify_one();
        }
    }
}
