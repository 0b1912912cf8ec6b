//! The clock's thread: it advances store time and takes out what has ended.

use std::time::Duration;

use parking_lot::MutexGuard;

use super::{BUSY_PENDING, FULL_PENDING, Shared, State};

/// How often the clock is read and leases expire when nobody calls.
const TICK: Duration = Duration::from_millis(50);

/// How often to look whether a busy disk has taken what waits, while there is more to take out.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Shared {
    /// Reads the clock and takes out what has ended, over and over until the store closes.
    pub(crate) fn keep_time(&self) {
        let mut state = self.state.lock();
        while !state.closing {
            self.tick_locked(&mut state);
            if state.ledger.has_backlog() && !state.applying {
                // The next part comes as soon as the disk has taken what waits, and a tick later at
                // the latest.
                for _ in 0..TICK.as_millis() / LOOK_AGAIN.as_millis() {
                    if state.pending.len() <= BUSY_PENDING || state.closing {
                        break;
                    }
                    self.closing.wait_for(&mut state, LOOK_AGAIN);
                }
                // Whoever waits for the lock gets it first.
                MutexGuard::bump(&mut state);
            } else {
                self.closing.wait_for(&mut state, TICK);
            }
        }
    }

    pub(crate) fn tick(&self) {
        self.tick_locked(&mut self.state.lock());
    }

    /// Says that whatever arrived until now was heard, and ticks until nothing that has ended is left.
    pub(crate) fn tick_heard(&self) {
        let mut state = self.state.lock();
        loop {
            let now = self.now(&mut state);
            state.time.heard(now);
            self.tick_locked(&mut state);
            if !state.ledger.has_backlog() || state.pending.len() > BUSY_PENDING || state.applying {
                return;
            }
            MutexGuard::bump(&mut state);
        }
    }

    fn tick_locked(&self, state: &mut State) {
        self.look_at_disk(state);
        if state.applying {
            return;
        }
        let now = self.now(state);
        if self.turns.all_answered() {
            state.time.heard(state.asked_at);
            state.asked_at = now;
        }
        self.apply_below(FULL_PENDING, state, |ledger, now| ledger.expire(now));
        if state.stamp_is_due() {
            self.work.notify_one();
        }
    }
}
