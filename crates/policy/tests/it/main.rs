//! Policies as their users read them and ask them.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod policy;
