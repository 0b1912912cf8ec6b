//! The store over disks and clocks that the tests control.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod acknowledged;
mod damaged;
mod ending;
mod large_reports;
mod listing;
mod operated;
mod upgrade;
