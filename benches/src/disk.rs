//! How often this disk makes a small write durable.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

/// Bytes of one write, about one journaled grant.
const WRITE_BYTES: usize = 256;

/// The preallocated file that is written over and over.
const FILE_BYTES: usize = 1 << 20;

/// Writes 256 bytes and calls fdatasync, one after another for `span`, in a preallocated file in
/// `directory`. Returns the writes per second.
///
/// # Errors
///
/// The file cannot be made, written or synced.
pub fn fdatasyncs_per_second(directory: &Path, span: Duration) -> anyhow::Result<f64> {
    let mut file = tempfile::tempfile_in(directory)
        .with_context(|| format!("no file can be made in {}", directory.display()))?;
    file.write_all(&vec![0; FILE_BYTES])?;
    file.sync_all()?;

    let mut count: usize = 0;
    let started = Instant::now();
    while started.elapsed() < span {
        let offset = count * WRITE_BYTES % FILE_BYTES;
        file.seek(SeekFrom::Start(offset as u64))?;
        file.write_all(&[count as u8; WRITE_BYTES])?;
        file.sync_data()?;
        count += 1;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}
