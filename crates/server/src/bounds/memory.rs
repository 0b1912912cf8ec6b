//! How much memory connections and their calls take up, counted where it is kept.
//!
//! A connection takes what it needs from the budget of the process, in lumps, on the account of its
//! caller: of the indexer whose key it has shown, of its peer address where no indexers are
//! configured, and of all strangers together before that. What is full refuses the one who asks.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

/// What a connection takes up besides its calls: buffers of HTTP/2, header tables, its task.
pub(crate) const CONNECTION_BYTES: usize = 32 << 10;

/// What a call takes up besides its headers and its message: the stream, its task, a short answer.
pub(crate) const CALL_BYTES: usize = 4 << 10;

/// What one header field takes up besides its text.
pub(crate) const FIELD_BYTES: usize = 128;

/// What the calls of one connection may take up before its caller is known.
const STRANGER_BYTES: usize = 1 << 20;

/// A connection reserves this much at once, so that most calls touch no counter of the process.
const LUMP: usize = 64 << 10;

/// Who calls, as far as bounds are concerned.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallerName {
    /// Nobody has shown a key yet.
    Stranger,
    /// The indexer of that name.
    Indexer(Box<str>),
    /// A caller from that address, where no indexers are configured.
    Address(IpAddr),
}

/// The memory of the process that connections and calls may take up.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit: usize,
    /// Bytes that are reserved, as the metrics show them.
    used: Gauge,
    /// Callers with anything reserved, strangers aside.
    active: AtomicUsize,
    accounts: Mutex<HashMap<CallerName, Weak<Account>>>,
}

impl MemoryBudget {
    /// A budget of `limit` bytes, of which `used` shows how many are reserved.
    pub(crate) fn new(limit: usize, used: Gauge) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used,
            active: AtomicUsize::new(0),
            accounts: Mutex::new(HashMap::new()),
        })
    }

    /// The account of the caller, which lives as long as one of its connections does.
    pub(crate) fn account(self: &Arc<Self>, name: CallerName) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(&name).and_then(Weak::upgrade) {
            return account;
        }
        // Accounts of callers that have left are looked through before the table grows.
        if accounts.len() == accounts.capacity() {
            accounts.retain(|_, account| account.strong_count() > 0);
        }
        let account = Arc::new(Account {
            budget: self.clone(),
            used: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            name: name.clone(),
        });
        accounts.insert(name, Arc::downgrade(&account));
        account
    }

    /// Callers that have anything reserved, strangers aside.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Relaxed)
    }
}

/// What one caller has reserved.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<MemoryBudget>,
    used: AtomicUsize,
    /// Connections of the caller that are open.
    pub(crate) connections: AtomicUsize,
    name: CallerName,
}

impl Account {
    pub(crate) const fn name(&self) -> &CallerName {
        &self.name
    }

    const fn is_stranger(&self) -> bool {
        matches!(self.name, CallerName::Stranger)
    }

    /// Reserves `bytes`, or nothing.
    ///
    /// Strangers together have a quarter of the budget. A caller has what it asks for while less
    /// than half of the budget is reserved, and its fair share after that.
    fn reserve(&self, bytes: usize) -> bool {
        let (own, total) = self.reserve_anyway(bytes);
        let MemoryBudget { limit, active, .. } = &*self.budget;
        let fits = if self.is_stranger() {
            own <= limit / 4 && total <= *limit
        } else {
            total <= limit / 2 || (total <= *limit && own <= limit / (active.load(Relaxed) + 1))
        };
        if !fits {
            self.release(bytes);
        }
        fits
    }

    /// Answers what is reserved then, by the caller and in all.
    fn reserve_anyway(&self, bytes: usize) -> (usize, usize) {
        let total = self.budget.used.inc_by(signed(bytes)) + signed(bytes);
        let before = self.used.fetch_add(bytes, Relaxed);
        if before == 0 && bytes > 0 && !self.is_stranger() {
            self.budget.active.fetch_add(1, Relaxed);
        }
        (before + bytes, usize::try_from(total).unwrap_or(0))
    }

    fn release(&self, bytes: usize) {
        self.budget.used.dec_by(signed(bytes));
        let own = self.used.fetch_sub(bytes, Relaxed) - bytes;
        if own == 0 && bytes > 0 && !self.is_stranger() {
            self.budget.active.fetch_sub(1, Relaxed);
        }
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Why there is no memory for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// The connection takes up as much as one may.
    Connection,
    /// The caller takes up its share, or everything is taken.
    Server,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connection => "the calls in flight on this connection take up too much memory",
            Self::Server => "the calls in flight of this caller take up too much memory",
        })
    }
}

/// What one connection takes up.
#[derive(Debug)]
pub(crate) struct ConnectionMemory {
    used: AtomicUsize,
    reserved: AtomicUsize,
    account: Mutex<Arc<Account>>,
    limit: usize,
    is_known: AtomicBool,
}

impl ConnectionMemory {
    /// Counts a new connection of a stranger; `limit` holds once its caller is known.
    pub(crate) fn new(strangers: Arc<Account>, limit: usize) -> Self {
        strangers.connections.fetch_add(1, Relaxed);
        // The number of connections is bounded by their places.
        strangers.reserve_anyway(CONNECTION_BYTES);
        Self {
            used: AtomicUsize::new(CONNECTION_BYTES),
            reserved: AtomicUsize::new(CONNECTION_BYTES),
            account: Mutex::new(strangers),
            limit,
            is_known: AtomicBool::new(false),
        }
    }

    pub(crate) fn account(&self) -> Arc<Account> {
        self.account.lock().clone()
    }

    /// Moves what the connection has reserved to the account of its caller, which is known now.
    ///
    /// What is reserved already is kept, whether it fits there or not.
    pub(crate) fn move_to(&self, caller: Arc<Account>) {
        let mut account = self.account.lock();
        let reserved = self.reserved.load(Relaxed);
        caller.reserve_anyway(reserved);
        caller.connections.fetch_add(1, Relaxed);
        let before = std::mem::replace(&mut *account, caller);
        before.release(reserved);
        before.connections.fetch_sub(1, Relaxed);
        self.is_known.store(true, Relaxed);
    }

    /// Takes `bytes` that [`ConnectionMemory::give_back`] has to follow.
    pub(crate) fn take(&self, bytes: usize) -> Result<(), Full> {
        let used = self.used.fetch_add(bytes, Relaxed) + bytes;
        let taken = if used > self.limit() {
            Err(Full::Connection)
        } else if used > self.reserved.load(Relaxed) && !self.reserve(used) {
            Err(Full::Server)
        } else {
            Ok(())
        };
        if taken.is_err() {
            self.used.fetch_sub(bytes, Relaxed);
        }
        taken
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        let used = self.used.fetch_sub(bytes, Relaxed) - bytes;
        if self.reserved.load(Relaxed) > used + 2 * LUMP {
            let account = self.account.lock();
            let needed = self.used.load(Relaxed) + LUMP;
            let spare = self.reserved.load(Relaxed).saturating_sub(needed);
            self.reserved.fetch_sub(spare, Relaxed);
            account.release(spare);
        }
    }

    fn limit(&self) -> usize {
        if self.is_known.load(Relaxed) { self.limit } else { STRANGER_BYTES.min(self.limit) }
    }

    fn reserve(&self, needed: usize) -> bool {
        let account = self.account.lock();
        let reserved = self.reserved.load(Relaxed);
        let missing = needed.saturating_sub(reserved);
        // A lump at a time; where that does not fit any more, what is needed and no more.
        let lumps = missing.next_multiple_of(LUMP);
        let taken = [lumps, missing].into_iter().find(|&bytes| account.reserve(bytes));
        taken.map(|bytes| self.reserved.fetch_add(bytes, Relaxed)).is_some()
    }
}

impl Drop for ConnectionMemory {
    fn drop(&mut self) {
        let account = self.account.get_mut();
        account.release(*self.reserved.get_mut());
        account.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn connection(budget: &Arc<MemoryBudget>, name: CallerName) -> ConnectionMemory {
        let connection = ConnectionMemory::new(budget.account(CallerName::Stranger), budget.limit);
        if name != CallerName::Stranger {
            connection.move_to(budget.account(name));
        }
        connection
    }

    fn indexer(name: &str) -> CallerName {
        CallerName::Indexer(name.into())
    }

    #[test]
    fn strangers_take_up_a_quarter_and_leave_room_for_callers_with_a_key() {
        let budget = MemoryBudget::new(64 * MIB, Gauge::default());
        let strangers: Vec<_> =
            (0..100).map(|_| connection(&budget, CallerName::Stranger)).collect();
        let call = STRANGER_BYTES - CONNECTION_BYTES;
        let full = strangers.iter().filter(|one| one.take(call).is_err()).count();
        assert_eq!(100 - full, 12, "16 MiB, of which the connections themselves have 3");
        assert_eq!(strangers[0].take(1), Err(Full::Connection));
        assert!(connection(&budget, indexer("west")).take(16 * MIB).is_ok());
    }

    #[test]
    fn a_caller_that_takes_up_all_it_can_leaves_a_share_for_each_other_caller() {
        let budget = MemoryBudget::new(64 * MIB, Gauge::default());
        let greedy = connection(&budget, indexer("greedy"));
        let taken = (0..64).filter(|_| greedy.take(MIB).is_ok()).count();
        assert_eq!(taken, 31, "half of it, while nobody else asks");
        let modest = connection(&budget, indexer("modest"));
        let taken = (0..64).filter(|_| modest.take(MIB).is_ok()).count();
        assert_eq!(taken, 21, "a third of it");
        assert_eq!(greedy.take(MIB), Err(Full::Server));
        (0..31).for_each(|_| greedy.give_back(MIB));
        assert!(greedy.take(MIB).is_ok());
    }

    #[test]
    fn a_connection_that_shows_its_key_takes_what_it_holds_along() {
        let budget = MemoryBudget::new(64 * MIB, Gauge::default());
        let late = connection(&budget, CallerName::Stranger);
        late.take(MIB / 2).unwrap();
        let strangers = budget.account(CallerName::Stranger);
        let reserved = strangers.used.load(Relaxed);
        assert!(reserved > MIB / 2 && strangers.connections.load(Relaxed) == 1);
        late.move_to(budget.account(indexer("west")));
        assert_eq!((strangers.used.load(Relaxed), strangers.connections.load(Relaxed)), (0, 0));
        assert_eq!((budget.used.get(), budget.active()), (signed(reserved), 1));
        assert!(late.take(2 * STRANGER_BYTES).is_ok(), "the bound of strangers is lifted at once");
    }

    #[test]
    fn everything_that_was_taken_is_given_back() {
        let budget = MemoryBudget::new(64 * MIB, Gauge::default());
        let one = connection(&budget, indexer("west"));
        for bytes in [1, 4_096, 100_000, 3 * MIB] {
            one.take(bytes).unwrap();
            one.take(bytes).unwrap();
            one.give_back(bytes);
            one.give_back(bytes);
        }
        assert!(budget.used.get() <= signed(3 * LUMP), "a few lumps stay ready");
        drop(one);
        assert_eq!((budget.used.get(), budget.active()), (0, 0));
    }
}
