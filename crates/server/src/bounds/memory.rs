//! The memory of connections and their calls.
//!
//! A connection reserves memory from the budget of the process, in chunks, on the account of its
//! caller. The caller is the indexer whose key it has shown, or the peer address where no indexers are
//! configured. All connections whose caller is not known yet share one account. Where a budget is used
//! up, the call that needs memory is refused.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;

/// The memory of a connection without its calls: HTTP/2 buffers, header tables, its task.
pub(crate) const CONNECTION_BYTES: usize = 32 << 10;

/// The memory of a call without its headers and message: the stream, its task, a short answer.
pub(crate) const CALL_BYTES: usize = 4 << 10;

/// The memory of a header field without its text.
pub(crate) const FIELD_BYTES: usize = 128;

/// The most memory of the calls of one connection before its caller is known.
const UNKNOWN_BYTES: usize = 1 << 20;

/// A connection reserves this much at a time, so that most calls use no counter of the process.
const CHUNK: usize = 64 << 10;

/// The caller to which bounds apply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CallerName {
    /// The caller has shown no key yet.
    Unknown,
    /// An indexer, by its name.
    Indexer(Box<str>),
    /// A caller from an address, where no indexers are configured.
    Address(IpAddr),
}

/// The memory of the process for connections and calls.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit: usize,
    /// The bytes that are reserved, as the metrics show them.
    used: Gauge,
    /// The number of callers with reserved memory, without unknown ones.
    active: AtomicUsize,
    accounts: Mutex<HashMap<CallerName, Weak<Account>>>,
}

impl MemoryBudget {
    /// A budget of `limit` bytes. `used` shows how many are reserved.
    pub(crate) fn new(limit: usize, used: Gauge) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used,
            active: AtomicUsize::new(0),
            accounts: Mutex::new(HashMap::new()),
        })
    }

    /// The account of the caller. It lives as long as a connection of the caller.
    pub(crate) fn account(self: &Arc<Self>, name: CallerName) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(&name).and_then(Weak::upgrade) {
            return account;
        }
        // Before the table grows, accounts of callers without connections are removed.
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

    /// The number of callers with reserved memory, without unknown ones.
    pub(crate) fn active(&self) -> usize {
        self.active.load(Relaxed)
    }
}

/// The memory that one caller has reserved.
#[derive(Debug)]
pub(crate) struct Account {
    budget: Arc<MemoryBudget>,
    used: AtomicUsize,
    /// The number of open connections of the caller.
    pub(crate) connections: AtomicUsize,
    name: CallerName,
}

impl Account {
    pub(crate) const fn name(&self) -> &CallerName {
        &self.name
    }

    const fn is_unknown(&self) -> bool {
        matches!(self.name, CallerName::Unknown)
    }

    /// Reserves `bytes`, or nothing. Returns whether they were reserved.
    ///
    /// Unknown callers together may have a quarter of the budget. A caller gets what it asks for while less
    /// than half of the budget is reserved, and its fair share after that.
    fn reserve(&self, bytes: usize) -> bool {
        let (own, total) = self.reserve_anyway(bytes);
        let MemoryBudget { limit, active, .. } = &*self.budget;
        let fits = if self.is_unknown() {
            own <= limit / 4 && total <= *limit
        } else {
            total <= limit / 2 || (total <= *limit && own <= limit / (active.load(Relaxed) + 1))
        };
        if !fits {
            self.release(bytes);
        }
        fits
    }

    /// Reserves `bytes` whether they fit or not. Returns what the caller and all callers have reserved.
    fn reserve_anyway(&self, bytes: usize) -> (usize, usize) {
        let total = self.budget.used.inc_by(signed(bytes)) + signed(bytes);
        let before = self.used.fetch_add(bytes, Relaxed);
        if before == 0 && bytes > 0 && !self.is_unknown() {
            self.budget.active.fetch_add(1, Relaxed);
        }
        (before + bytes, usize::try_from(total).unwrap_or(0))
    }

    fn release(&self, bytes: usize) {
        self.budget.used.dec_by(signed(bytes));
        let own = self.used.fetch_sub(bytes, Relaxed) - bytes;
        if own == 0 && bytes > 0 && !self.is_unknown() {
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
    /// The connection uses the most memory that a connection may use.
    Connection,
    /// The caller uses its share, or the whole budget is used.
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

/// The memory of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionMemory {
    used: AtomicUsize,
    reserved: AtomicUsize,
    account: Mutex<Arc<Account>>,
    limit: usize,
    is_known: AtomicBool,
}

impl ConnectionMemory {
    /// Counts a new connection, whose caller is unknown; `limit` applies once its caller is known.
    pub(crate) fn new(unknown: Arc<Account>, limit: usize) -> Self {
        unknown.connections.fetch_add(1, Relaxed);
        // The number of connections is bounded by their places.
        unknown.reserve_anyway(CONNECTION_BYTES);
        Self {
            used: AtomicUsize::new(CONNECTION_BYTES),
            reserved: AtomicUsize::new(CONNECTION_BYTES),
            account: Mutex::new(unknown),
            limit,
            is_known: AtomicBool::new(false),
        }
    }

    pub(crate) fn account(&self) -> Arc<Account> {
        self.account.lock().clone()
    }

    /// Moves the reserved memory of the connection to the account of its caller, which is known now,
    /// whether it fits there or not.
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

    /// Takes `bytes` of memory, which [`ConnectionMemory::give_back`] has to return.
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
        if self.reserved.load(Relaxed) > used + 2 * CHUNK {
            let account = self.account.lock();
            let needed = self.used.load(Relaxed) + CHUNK;
            let spare = self.reserved.load(Relaxed).saturating_sub(needed);
            self.reserved.fetch_sub(spare, Relaxed);
            account.release(spare);
        }
    }

    fn limit(&self) -> usize {
        if self.is_known.load(Relaxed) { self.limit } else { UNKNOWN_BYTES.min(self.limit) }
    }

    fn reserve(&self, needed: usize) -> bool {
        let account = self.account.lock();
        let reserved = self.reserved.load(Relaxed);
        let missing = needed.saturating_sub(reserved);
        // A chunk at a time. If no chunk fits any more, only what is needed.
        let chunks = missing.next_multiple_of(CHUNK);
        let taken = [chunks, missing].into_iter().find(|&bytes| account.reserve(bytes));
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
        let connection = ConnectionMemory::new(budget.account(CallerName::Unknown), budget.limit);
        if name != CallerName::Unknown {
            connection.move_to(budget.account(name));
        }
        connection
    }

    fn indexer(name: &str) -> CallerName {
        CallerName::Indexer(name.into())
    }

    #[test]
    fn unknown_callers_take_up_a_quarter_and_leave_room_for_callers_with_a_key() {
        let budget = MemoryBudget::new(64 * MIB, Gauge::default());
        let unknown: Vec<_> = (0..100).map(|_| connection(&budget, CallerName::Unknown)).collect();
        let call = UNKNOWN_BYTES - CONNECTION_BYTES;
        let full = unknown.iter().filter(|one| one.take(call).is_err()).count();
        assert_eq!(100 - full, 12, "16 MiB, of which the connections themselves have 3");
        assert_eq!(unknown[0].take(1), Err(Full::Connection));
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
        let late = connection(&budget, CallerName::Unknown);
        late.take(MIB / 2).unwrap();
        let unknown = budget.account(CallerName::Unknown);
        let reserved = unknown.used.load(Relaxed);
        assert!(reserved > MIB / 2 && unknown.connections.load(Relaxed) == 1);
        late.move_to(budget.account(indexer("west")));
        assert_eq!((unknown.used.load(Relaxed), unknown.connections.load(Relaxed)), (0, 0));
        assert_eq!((budget.used.get(), budget.active()), (signed(reserved), 1));
        assert!(
            late.take(2 * UNKNOWN_BYTES).is_ok(),
            "the bound of unknown callers is lifted at once"
        );
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
        assert!(budget.used.get() <= signed(3 * CHUNK), "a few chunks stay ready");
        drop(one);
        assert_eq!((budget.used.get(), budget.active()), (0, 0));
    }
}
