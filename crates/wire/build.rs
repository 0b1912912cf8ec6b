//! Generates the messages and services from `proto/` without `protoc`.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = [
        "sf/worker/v1/pool.proto",
        "sf/metering/v1/metering.proto",
        "sf/gateway/payment/v1/usage.proto",
        "tgm/session/v1/control.proto",
    ];
    let descriptors = protox::compile(files, [&root])?;
    // The same descriptor set feeds gRPC reflection.
    let out = PathBuf::from(std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(out, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Deterministic order of the traces of a pool on the wire, and no hashing on the hot path.
        .btree_map(".sf.worker.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
