//! Tests of policies through the public interface of the crate.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod policy;
