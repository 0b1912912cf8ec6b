//! The rules of leases: what may be granted, what it counts against and when it ends.
//!
//! A *session* is the right to run one stream, a *worker* the right to run one job under it. Both
//! are leases: counted, owned, time bounded, kept alive, returned. [`Ledger`] is every rule about
//! them, as one synchronous and deterministic state machine: no clock, no I/O, no async, no
//! logging. Time is an argument, and so are the terms of each borrow.
//!
//! ```
//! use lease::{Config, Ledger, Limits, Refusal, Request, Terms, Timestamp};
//!
//! let mut ledger = Ledger::new(Config::default());
//! let terms = Terms { limits: Limits { organization: Some(1), ..Limits::default() }, ..Terms::default() };
//! let start = Timestamp::ZERO;
//!
//! let first = ledger.borrow(&Request::session("t1r", "acme"), &terms, start).expect("a free slot");
//! let refused = ledger.borrow(&Request::session("t1r", "acme"), &terms, start).unwrap_err();
//! assert_eq!(refused.to_string(), "the organization limit is reached: 1/1");
//!
//! // Nobody keeps the first one alive: one TTL later its slot is free.
//! let later = start + first.ttl;
//! assert!(ledger.borrow(&Request::session("t1r", "acme"), &terms, later).is_ok());
//! ```

mod budget;
mod change;
mod clock;
mod config;
mod digest;
mod id;
mod lease;
mod ledger;
mod memory;
mod policy;
mod pool;
mod records;
mod report;
mod request;
mod revocation;
mod scope;
mod slab;
mod table;
mod terms;
mod timer;
mod usage;

pub use budget::{Budget, BudgetSpent, Period, Usage, Used, WallTime, amount_in_words};
pub use change::{Change, End, Ends, TraceEnd};
pub use clock::{LONGEST_STEP, StoreClock, Timestamp};
pub use config::Config;
pub use digest::TraceDigest;
pub use id::{
    BorrowId, Invalid, LeaseId, LeaseNumber, MAX_ID_BYTES, NotALeaseId, NotALeaseNumber,
    validate_id,
};
pub use lease::{BorrowedAs, Kind, Lease, MAX_MINIMAL_LIFE, MAX_TTL, Reason, whole_milliseconds};
pub use ledger::{
    Enforcement, Ledger, ListedLease, MAX_SPENT_LISTED, PoolReading, RESUME_SPREAD, Reporting,
};
pub use policy::Policy;
pub use pool::{MAX_TRACES_LISTED, PoolCount, PoolState, PoolUse};
pub use report::{
    MAX_AMOUNTS, MAX_METRICS, Report, ReportRefusal, Reported, Skipped, Submission, Uncountable,
};
pub use request::{ANONYMOUS, Request, organization_of};
pub use revocation::{Revocation, RevokedFor};
pub use scope::{Scope, forms_a_scope};
pub use slab::RECORDS_PER_HOLD;
pub use terms::{
    Denied, Grant, KeptAlive, Limits, MemoryFull, Refusal, Released, Remembers, Terms,
    UnnamedServices,
};
