//! Where leases are kept: the ledger behind its lock, one atomic operation at a time.

mod answers;
mod attached;
mod batch;
mod blocking;
mod clock;
mod commits;
mod delivery;
mod enforcing;
mod error;
mod journal;
pub mod lane;
mod listing;
mod operations;
mod records;
mod recovered;
mod reporting;
mod shared;
mod store;
mod turns;
mod url;

use std::time::Duration;

pub use answers::{
    BorrowError, Enforced, KeptBatch, Noted, ReleaseError, ReportError, Reported, Skipped,
    Submission, Unavailable, UsageReport,
};
pub use attached::{Attachment, Listener};
pub use clock::{Clock, SystemClock};
pub use commits::Commits;
pub use delivery::{Borrowed, Delivery};
pub use error::Error;
pub use listing::{
    LeaseFilter, LeasePage, ListedLease, MAX_PAGE, Order, PoolCount, RecordError, UsageCount,
};
pub use recovered::{Options, Recovered};
pub use store::Store;
pub use turns::Turns;
pub use url::StoreUrl;

/// Nobody waits longer than this for the disk.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
