//! The backend of a store file. It holds writes back until the whole file was read, and allocates the
//! blocks of a file when the file grows.
//!
//! redb repairs a file when it opens it: it writes before the server knows whether the file is valid,
//! of a known format, and complete. So writes are kept in memory while a file is opened and read. If
//! the file is refused, not one byte of it was changed. If it is accepted, the writes and flushes are
//! done in their original order, so a power loss is as safe as redb makes it.
//!
//! If only the length of a file is set, its blocks are not allocated. Then each flush of new pages has
//! to write the blocks and the metadata of the file, one after the other. So a file grows by writing
//! zeros: after the blocks were written once, a flush is one write.

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// The most bytes that are held back. Opening a file writes only a few headers.
const MOST_HELD_BACK: usize = 64 << 20;

/// The most bytes that are written ahead when a file grows.
const WRITE_AHEAD: u64 = 32 << 20;

/// How many zeros are written at a time.
const CHUNK: usize = 256 << 10;

/// A backend that can hold writes back. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Backend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    backend: Box<dyn StorageBackend>,
    allocates_blocks: bool,
    is_holding: AtomicBool,
    held: Mutex<HeldBack>,
}

/// The operations that are held back.
#[derive(Debug, Default)]
struct HeldBack {
    operations: Vec<Operation>,
    bytes: usize,
    len: u64,
}

#[derive(Debug)]
enum Operation {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Flush,
}

impl Backend {
    /// Wraps `backend`. Writes go to it directly until [`Backend::hold_back`].
    pub(crate) fn new(backend: impl StorageBackend) -> Self {
        Self::wrap(backend, false)
    }

    /// Wraps the backend of a file, whose blocks are allocated when it grows.
    pub(crate) fn of_file(backend: FileBackend) -> Self {
        Self::wrap(backend, true)
    }

    fn wrap(backend: impl StorageBackend, allocates_blocks: bool) -> Self {
        let (is_holding, held) = (AtomicBool::new(false), Mutex::default());
        let backend = Box::new(backend);
        Self(Arc::new(Inner { backend, allocates_blocks, is_holding, held }))
    }

    /// Holds back writes from now on.
    ///
    /// # Errors
    ///
    /// The length of the file cannot be read.
    pub(crate) fn hold_back(&self) -> io::Result<()> {
        self.0.held.lock().len = self.0.backend.len()?;
        self.0.is_holding.store(true, Ordering::Release);
        Ok(())
    }

    /// Does the operations that were held back, and holds back no more.
    ///
    /// # Errors
    ///
    /// The file cannot be written to. Some writes may have been done, as after a crash.
    pub(crate) fn write_held_back(&self) -> io::Result<()> {
        let mut held = self.0.held.lock();
        for operation in std::mem::take(&mut held.operations) {
            match operation {
                Operation::Write(offset, data) => self.0.backend.write(offset, &data)?,
                Operation::SetLen(len) => self.0.set_len(len)?,
                Operation::Flush => self.0.backend.sync_data()?,
            }
        }
        self.0.is_holding.store(false, Ordering::Release);
        Ok(())
    }

    /// The operations that are held back; `None` while writes go to the backend directly.
    fn held(&self) -> Option<parking_lot::MutexGuard<'_, HeldBack>> {
        let is_holding = self.0.is_holding.load(Ordering::Acquire);
        is_holding.then(|| self.0.held.lock())
    }
}

impl Inner {
    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.allocates_blocks {
            return self.backend.set_len(len);
        }
        let old = self.backend.len()?;
        self.backend.set_len(len)?;
        let end = len.min(old.saturating_add(WRITE_AHEAD));
        let zeros = vec![0; CHUNK];
        let mut offset = old;
        while offset < end {
            let part = zeros.len().min(usize::try_from(end - offset).unwrap_or(usize::MAX));
            self.backend.write(offset, &zeros[..part])?;
            offset += part as u64;
        }
        Ok(())
    }
}

impl HeldBack {
    fn keep(&mut self, operation: Operation) -> io::Result<()> {
        if let Operation::Write(_, data) = &operation {
            self.bytes += data.len();
            if self.bytes > MOST_HELD_BACK {
                return Err(io::Error::other("too much is written while the file is read"));
            }
        }
        self.operations.push(operation);
        Ok(())
    }

    /// Applies the writes that are held back to bytes that were read from the file.
    fn lay_over(&self, offset: u64, out: &mut [u8]) {
        let end = offset + out.len() as u64;
        for operation in &self.operations {
            match operation {
                Operation::Write(at, data) => {
                    let (from, to) = ((*at).max(offset), (at + data.len() as u64).min(end));
                    if from < to {
                        let (into, source) = (from - offset..to - offset, from - at..to - at);
                        out[within(into)].copy_from_slice(&data[within(source)]);
                    }
                }
                // Bytes that are cut off and added again are zero.
                Operation::SetLen(len) if *len < end => {
                    out[within((*len).max(offset) - offset..end - offset)].fill(0);
                }
                Operation::SetLen(_) | Operation::Flush => {}
            }
        }
    }
}

/// Converts a range of offsets within a buffer.
fn within(range: std::ops::Range<u64>) -> std::ops::Range<usize> {
    let index = |place| usize::try_from(place).expect("a place in a buffer");
    index(range.start)..index(range.end)
}

type Range = Bound<u64>;

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        match self.held() {
            Some(held) => Ok(held.len),
            None => self.0.backend.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let Some(held) = self.held() else { return self.0.backend.read(offset, out) };
        if offset + out.len() as u64 > held.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = self.0.backend.len()?.saturating_sub(offset).min(out.len() as u64);
        let there = within(0..there);
        out[there.end..].fill(0);
        self.0.backend.read(offset, &mut out[there])?;
        held.lay_over(offset, out);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self.held() {
            Some(mut held) => {
                held.len = len;
                held.keep(Operation::SetLen(len))
            }
            None => self.0.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.held() {
            Some(mut held) => held.keep(Operation::Flush),
            None => self.0.backend.sync_data(),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.held() {
            Some(mut held) => held.keep(Operation::Write(offset, data.to_owned())),
            None => self.0.backend.write(offset, data),
        }
    }

    fn close(&self) -> io::Result<()> {
        self.0.backend.close()
    }

    fn try_lock_range(&self, start: Range, end: Range) -> Result<bool, BackendError> {
        self.0.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Range, end: Range) -> Result<bool, BackendError> {
        self.0.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Range, end: Range) -> Result<(), BackendError> {
        self.0.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Range, end: Range) -> Result<(), BackendError> {
        self.0.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Range, end: Range) -> Result<(), BackendError> {
        self.0.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Range, end: Range) -> Result<bool, BackendError> {
        self.0.backend.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    use super::*;

    fn contents(backend: &impl StorageBackend) -> Vec<u8> {
        let mut contents = vec![0; usize::try_from(backend.len().unwrap()).unwrap()];
        backend.read(0, &mut contents).unwrap();
        contents
    }

    proptest! {
        #[test]
        fn held_back_writes_read_as_if_they_were_written_and_are_written_later(
            steps in prop::collection::vec((0_u8..3, 0_u64..300, any::<u8>(), 0_usize..100), 0..20),
        ) {
            let (plain, staged) = (InMemoryBackend::new(), Backend::new(InMemoryBackend::new()));
            for backend in [&plain as &dyn StorageBackend, &staged] {
                backend.set_len(200).unwrap();
                backend.write(50, &[7; 60]).unwrap();
            }
            staged.hold_back().unwrap();
            for (step, place, byte, length) in steps {
                for backend in [&plain as &dyn StorageBackend, &staged] {
                    let offset = place.min(backend.len().unwrap());
                    let room = usize::try_from(backend.len().unwrap() - offset).unwrap();
                    match step {
                        0 => backend.set_len(place).unwrap(),
                        1 => backend.sync_data().unwrap(),
                        _ => backend.write(offset, &vec![byte; length.min(room)]).unwrap(),
                    }
                }
                prop_assert_eq!(contents(&staged), contents(&plain));
            }
            staged.write_held_back().unwrap();
            prop_assert_eq!(contents(&staged), contents(&plain));
        }
    }

    #[test]
    fn held_back_writes_that_are_dropped_never_reach_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, [3; 100]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let staged = Backend::new(redb::backends::FileBackend::new(file).unwrap());
        staged.hold_back().unwrap();
        staged.write(10, &[9; 10]).unwrap();
        staged.set_len(500).unwrap();
        assert_eq!(contents(&staged)[..30], [[3; 10], [9; 10], [3; 10]].concat());
        drop(staged);
        assert_eq!(std::fs::read(&path).unwrap(), [3; 100]);
    }

    #[cfg(unix)]
    #[test]
    fn a_grown_file_has_its_blocks_and_keeps_what_was_in_it() {
        use std::os::unix::fs::MetadataExt as _;

        let file = tempfile::NamedTempFile::new().unwrap();
        let backend = Backend::of_file(FileBackend::new(file.reopen().unwrap()).unwrap());
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
