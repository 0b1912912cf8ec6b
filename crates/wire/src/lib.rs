//! Generated messages and services of the wire contract; nothing here is written by hand.
//!
//! The contract itself, with its comments, is `proto/`. Names and numbers there are fixed by the
//! clients in production.

// Generated code carries the comments of the .proto files, which document what needs it.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// `sf.worker.v1`: sessions and workers.
pub mod worker {
    tonic::include_proto!("sf.worker.v1");
}

/// `tgm.session.v1`: keep-alives in batches and pushed revocations.
pub mod control {
    tonic::include_proto!("tgm.session.v1");
}

/// The encoded descriptor set of every service of the project, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
