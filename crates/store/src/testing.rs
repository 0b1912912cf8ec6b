//! What tests of a store need: a disk and a clock that they control, and records of operators.

#![allow(missing_docs, reason = "only tests use this")]

pub mod batches;
pub mod cluster;
pub mod etcd;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lease::WallTime;
use parking_lot::{Condvar, Mutex};
use policy::overrides::{AuditEntry, Override, OverrideChange, OverrideKey, Subject};
use redb::StorageBackend;

use crate::clock::Clock;
use crate::store::Store;

/// One file on an imitated disk. Clones share the disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    data: Mutex<Data>,
    /// How many flushes are done before others wait; `None` where none waits.
    held: Mutex<Option<usize>>,
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
    /// Makes flushes wait until [`Disk::release`].
    pub fn hold(&self) {
        *self.0.held.lock() = Some(0);
    }

    pub fn release(&self) {
        *self.0.held.lock() = None;
        self.0.released.notify_all();
    }

    /// Lets one flush through. The next one waits.
    pub fn release_one(&self) {
        *self.0.held.lock() = Some(1);
        self.0.released.notify_all();
    }

    /// Whether a flush waits.
    pub fn is_waiting(&self) -> bool {
        self.0.waiting.load(Ordering::SeqCst) > 0
    }

    /// Makes every write and flush fail from now on.
    pub fn fail(&self) {
        self.0.failing.store(true, Ordering::SeqCst);
    }

    /// How many flushes were done.
    pub fn flushes(&self) -> usize {
        self.0.flushes.load(Ordering::SeqCst)
    }

    /// A disk with this content.
    pub fn with(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        *disk.0.data.lock() = Data { flushed: bytes.clone(), now: bytes, unflushed: Vec::new() };
        disk
    }

    /// The present content, as after a kill of the process.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.data.lock().now.clone()
    }

    /// The disk after a loss of power now: everything that was flushed, and of the writes since
    /// then those for whose number `kept` returns true.
    pub fn after_power_loss(&self, kept: impl Fn(usize) -> bool) -> Self {
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
        // The new length is durable at once, because a file system may journal it.
        data.flushed.resize(len as usize, 0);
        data.unflushed.retain(|(offset, bytes)| offset + bytes.len() <= len as usize);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.working()?;
        {
            let mut held = self.0.held.lock();
            self.0.waiting.fetch_add(1, Ordering::SeqCst);
            while *held == Some(0) {
                self.0.released.wait(&mut held);
            }
            *held = held.map(|left| left - 1);
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

/// A clock that advances only when a test says so.
#[derive(Debug, Default)]
pub struct ManualClock {
    monotonic: Mutex<Duration>,
    unix: Mutex<Duration>,
}

impl ManualClock {
    pub fn new() -> Arc<Self> {
        let clock = Self::default();
        *clock.unix.lock() = Duration::from_secs(1_800_000_000);
        Arc::new(clock)
    }

    /// Advances both clocks at once, as after a pause of the process.
    pub fn jump(&self, by: Duration) {
        *self.monotonic.lock() += by;
        *self.unix.lock() += by;
    }

    pub fn set_unix(&self, unix: Duration) {
        *self.unix.lock() = unix;
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        *self.monotonic.lock()
    }

    fn unix(&self) -> Duration {
        *self.unix.lock()
    }
}

/// Panics in an operation of the store, under the lock of its ledger.
pub fn poison(store: &Store) {
    let shared = store.shared.clone();
    let poisoning = std::thread::spawn(move || {
        let _: Result<((), _), _> = shared.change(None, |_, _| panic!("a test poisons the store"));
    });
    assert!(poisoning.join().is_err());
}

/// Waits, for a bounded time, until something outside of this task has happened.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut happened: impl FnMut() -> F) {
    for _ in 0..8_000 {
        if happened().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never happened: {what}");
}

/// An entry of the audit list before it has its number.
pub fn entry(action: &str) -> AuditEntry {
    AuditEntry {
        number: 0,
        at: WallTime::from_unix(1_800_000_000),
        from: "127.0.0.1:5".into(),
        action: action.into(),
        note: "a note".into(),
        ended: 0,
    }
}

/// Sets the limit of an organization.
pub fn set(organization: &str, max: u64) -> OverrideChange {
    let key = OverrideKey {
        subject: Subject::Organization,
        id: organization.into(),
        service: Some("t1r".into()),
    };
    let value = Override {
        value: max,
        set_at: WallTime::from_unix(1_800_000_000),
        note: format!("{max} for {organization}").into(),
    };
    OverrideChange { key, value: Some(value) }
}

/// The action of each entry.
pub fn note(entries: &[AuditEntry]) -> Vec<&str> {
    entries.iter().map(|entry| &*entry.action).collect()
}
