//! Generated messages and services of the wire contract, and the frame of a message in a unary call.
//!
//! The contract itself, with its comments, is `proto/`. Names and numbers there are fixed by the
//! clients in production.

// Generated code carries the comments of the .proto files, which document what needs it.
#![allow(missing_docs, unreachable_pub, clippy::all)]

pub mod framing;

/// `sf.worker.v1`: sessions and workers.
pub mod worker {
    tonic::include_proto!("sf.worker.v1");
}

// Laid out as the packages are: generated code finds another package by its place.
mod sf {
    pub mod metering {
        pub mod v1 {
            tonic::include_proto!("sf.metering.v1");
        }
    }
    pub mod gateway {
        pub mod payment {
            pub mod v1 {
                tonic::include_proto!("sf.gateway.payment.v1");
            }
        }
    }
}

/// `sf.gateway.payment.v1`: reports of usage.
pub use sf::gateway::payment::v1 as payment;
/// `sf.metering.v1`: what organizations used.
pub use sf::metering::v1 as metering;

/// `tgm.session.v1`: keep-alives in batches and pushed revocations.
pub mod control {
    tonic::include_proto!("tgm.session.v1");
}

/// The encoded descriptor set of every service of the project, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
