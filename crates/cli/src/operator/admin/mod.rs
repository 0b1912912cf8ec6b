//! A client of the admin API.

mod calls;
mod client;
mod link;
mod url;

pub(crate) use self::calls::{Subject, Target};
pub(crate) use self::client::{Admin, AdminArgs, Fault};
