//! The store of leases: the ledger behind its lock, group commit, and the journal.
//!
//! [`Recovered`] opens a store and reads its journal. [`Store`] is an open store; each of its methods
//! is one atomic operation.

mod answers;
mod attached;
mod batch;
mod blocking;
mod clock;
mod commits;
#[cfg(test)]
mod conformance;
mod contents;
mod copying;
mod desk;
mod enforcing;
mod error;
pub mod fleet;
mod handing_over;
mod inspecting;
mod journal;
pub mod lane;
mod leading;
mod listing;
mod operations;
mod options;
mod records;
mod recovered;
mod reporting;
mod role;
mod serving_threads;
mod shared;
mod store;
mod term;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod url;

use std::time::Duration;

pub use answers::{
    AuditNote, BorrowError, Enforced, NotExtended, ReleaseError, ReportError, Reported, Skipped,
    Submission, Unavailable, UsageReport,
};
pub use attached::Listener;
pub use clock::{Clock, SystemClock};
pub use commits::Commits;
pub use contents::{Inspected, RecordCounts};
pub use copying::{CopyProgress, copy};
pub use error::Error;
pub use inspecting::inspect;
pub use lease::{ListedLease, PoolCount};
pub use listing::{LeaseFilter, LeasePage, MAX_PAGE, Order, RecordError, UsageCount};
pub use options::Options;
pub use recovered::Recovered;
pub use serving_threads::ServingThreads;
pub use shared::{Attachment, Borrowed, Delivery};
pub use store::Store;
pub use url::StoreUrl;

/// The longest time that a call waits for the disk.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
