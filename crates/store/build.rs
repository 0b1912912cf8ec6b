//! Generates the messages of etcd from `proto/` without `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    // The file has no services, so tonic generates messages only.
    tonic_prost_build::configure().compile_fds(protox::compile(["etcd.proto"], [&root])?)?;
    Ok(())
}
