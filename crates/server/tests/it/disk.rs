//! A disk in memory that can be slow, can fail, and can lose power.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use redb::StorageBackend;

/// What a file system keeps of one file. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    data: Mutex<Data>,
    held: Mutex<bool>,
    released: Condvar,
    waiting: AtomicUsize,
    failing: AtomicBool,
    flushes: AtomicUsize,
}

#[derive(Clone, Debug, Default)]
struct Data {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Writes since the last flush.
    unflushed: Vec<(usize, Vec<u8>)>,
}

impl Disk {
    /// Lets flushes wait until [`Disk::release`].
    pub(crate) fn hold(&self) {
        *self.0.held.lock() = true;
    }

    pub(crate) fn release(&self) {
        *self.0.held.lock() = false;
        self.0.released.notify_all();
    }

    /// Whether a flush waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.0.waiting.load(Ordering::SeqCst) > 0
    }

    /// Lets every write and flush fail from now on.
    pub(crate) fn fail(&self) {
        self.0.failing.store(true, Ordering::SeqCst);
    }

    /// How many flushes were done.
    pub(crate) fn flushes(&self) -> usize {
        self.0.flushes.load(Ordering::SeqCst)
    }

    /// A disk with this on it.
    pub(crate) fn with(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        *disk.0.data.lock() = Data { flushed: bytes.clone(), now: bytes, unflushed: Vec::new() };
        disk
    }

    /// What is on it, for whoever reads it now: after a kill of the process, say.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.data.lock().now.clone()
    }

    /// The disk as a machine finds it that lost power now: all that was flushed, and of the writes
    /// since then those that `kept` says, by their number.
    pub(crate) fn after_power_loss(&self, kept: impl Fn(usize) -> bool) -> Self {
        let data = self.0.data.lock().clone();
        let mut now = data.flushed;
        for (number, (offset, bytes)) in data.unflushed.into_iter().enumerate() {
            if kept(number) {
                now.resize(now.len().max(offset + bytes.len()), 0);
                now[offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
        }
        Self::with(now)
    }

    fn working(&self) -> io::Result<()> {
        if self.0.failing.load(Ordering::SeqCst) {
            Err(io::Error::other("the disk is broken"))
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.data.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = offset as usize;
        let data = self.0.data.lock();
        let bytes = data.now.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.working()?;
        let mut data = self.0.data.lock();
        data.now.resize(len as usize, 0);
        // The length is kept at once, as a file system's journal may.
        data.flushed.resize(len as usize, 0);
        data.unflushed.retain(|(offset, bytes)| offset + bytes.len() <= len as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.working()?;
        {
            let mut held = self.0.held.lock();
            self.0.waiting.fetch_add(1, Ordering::SeqCst);
            while *held {
                self.0.released.wait(&mut held);
            }
            self.0.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.working()?;
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
        let mut data = self.0.data.lock();
        data.flushed = data.now.clone();
        data.unflushed.clear();
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.working()?;
        let offset = offset as usize;
        let mut data = self.0.data.lock();
        data.now[offset..offset + bytes.len()].copy_from_slice(bytes);
        data.unflushed.push((offset, bytes.to_owned()));
        Ok(())
    }
}
