//! A file backend that allocates the blocks of a file when the file grows.

use std::io;
use std::ops::Bound;

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// The most bytes that are written ahead when a file grows.
const WRITE_AHEAD: u64 = 32 << 20;

/// How many zeros are written at a time.
const CHUNK: usize = 256 << 10;

/// A file that grows by writing zeros.
///
/// If only the length of a file is set, its blocks are not allocated. Then each flush of new pages has
/// to write the blocks and the metadata of the file, one after the other. After the blocks were
/// written once, a flush is one write.
#[derive(Debug)]
pub(crate) struct Preallocated(pub(crate) FileBackend);

type Range = Bound<u64>;

impl StorageBackend for Preallocated {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.0.len()?;
        self.0.set_len(len)?;
        let end = len.min(old.saturating_add(WRITE_AHEAD));
        let zeros = vec![0; CHUNK];
        let mut offset = old;
        while offset < end {
            let part = zeros.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            self.0.write(offset, &zeros[..part])?;
            offset += part as u64;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }

    fn try_lock_range(&self, start: Range, end: Range) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Range, end: Range) -> Result<bool, BackendError> {
        self.0.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Range, end: Range) -> Result<(), BackendError> {
        self.0.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Range, end: Range) -> Result<(), BackendError> {
        self.0.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Range, end: Range) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Range, end: Range) -> Result<bool, BackendError> {
        self.0.query_lock_range(start, end)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_grown_file_has_its_blocks_and_keeps_what_was_in_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let backend = Preallocated(FileBackend::new(file.reopen().unwrap()).unwrap());
        backend.set_len(10_000).unwrap();
        backend.write(0, b"kept").unwrap();
        let len = 3 * CHUNK as u64 + 17;
        backend.set_len(len).unwrap();
        backend.sync_data().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(metadata.len(), len);
        assert!(metadata.blocks() * 512 >= len, "{} blocks", metadata.blocks());
        let mut start = [1; 6];
        backend.read(0, &mut start).unwrap();
        assert_eq!(&start, b"kept\0\0");
        backend.set_len(4).unwrap();
        assert_eq!(backend.len().unwrap(), 4);
    }
}
