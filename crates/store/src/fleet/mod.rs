//! A fleet: several servers on one database, of which one leads.
//!
//! Everything here is pure: time, random seeds and the answers of the database are arguments, so that a
//! simulation can play years of a fleet in seconds. An engine sends the requests that
//! [`Leadership::poll`] returns, and compares and replaces rows as they say.
//!
//! Time is that of `CLOCK_BOOTTIME`, as the time since boot: it goes on while the machine sleeps or the
//! process is stopped. No wall clock decides anything.

mod fence;
mod history;
mod leadership;
mod members;
mod rows;
mod sightings;
mod view;

pub use fence::{Fence, Resolved};
pub use leadership::{Answer, Config, Event, Leadership, Request};
pub(crate) use members::{FORGOTTEN_AFTER, UNKNOWN_AGE, successor};
pub use members::{Member, MemberRole, StepDownError};
pub use rows::{JournalRow, LeaderId, LeadershipRow, MemberId, Rows};
pub(crate) use sightings::Sightings;
pub use view::{FleetSecret, Leader};

#[cfg(test)]
mod tests;
