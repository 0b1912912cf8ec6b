//! Opening a store: its journal is read before it runs.
//!
//! This module knows which journal belongs to which URL. Another engine is added here and in `url.rs`.

use std::path::Path;
use std::sync::Arc;

use lease::{Config, Ledger};

use crate::clock::{Clock, SystemClock};
use crate::error::Error;
use crate::journal::file::{Backend, FileJournal};
use crate::journal::{Opened, Restored, Stamp};
use crate::records::OperatorRecords;
use crate::shared::Shared;
use crate::store::Store;
use crate::url::StoreUrl;

/// The options of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most leases it holds at once, whatever the policy allows.
    pub max_leases: u64,
    /// The most bytes that the ids of all leases take up at once.
    pub max_id_bytes: u64,
    /// The clock of the store.
    pub clock: Arc<dyn Clock>,
    /// Whether a damaged file is opened in an older state, without changes that were acknowledged.
    pub accept_older_state: bool,
}

impl Default for Options {
    /// Room for 2,000,000 leases with 512 MiB of ids, and the clocks of the operating system.
    fn default() -> Self {
        let Config { max_leases, max_id_bytes, .. } = Config::default();
        let clock = Arc::new(SystemClock::new());
        Self { max_leases, max_id_bytes, clock, accept_older_state: false }
    }
}

impl Options {
    /// Returns an empty ledger, without records of operators.
    fn nothing_restored(&self, journal: bool) -> Result<Restored, Error> {
        let Self { max_leases, max_id_bytes, .. } = *self;
        let seed = random_seed()?;
        let config = Config { max_leases, max_id_bytes, seed, journal, ..Config::default() };
        Ok(Restored { ledger: Ledger::new(config), records: OperatorRecords::default() })
    }
}

/// A store that has read its journal and is not running yet.
///
/// [`Recovered::resume`] starts it: from that moment every lease has its full TTL.
#[derive(Debug)]
pub struct Recovered {
    restored: Restored,
    /// `None` for a store without a journal.
    journal: Option<Opened>,
    stamp: Stamp,
    clock: Arc<dyn Clock>,
}

impl Recovered {
    /// Opens the store that `url` names.
    ///
    /// # Errors
    ///
    /// As [`Recovered::file`].
    pub fn open(url: &StoreUrl, options: Options) -> Result<Self, Error> {
        match url {
            StoreUrl::Memory => Self::memory(options),
            StoreUrl::File { path, make_folders } => {
                Self::file(&StoreUrl::prepare(path, *make_folders)?, options)
            }
        }
    }

    /// Returns an empty store without a journal: its leases end with the process.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the operating system has no random bytes.
    pub fn memory(options: Options) -> Result<Self, Error> {
        let (restored, stamp) = (options.nothing_restored(false)?, Stamp::default());
        Ok(Self { restored, journal: None, stamp, clock: options.clock })
    }

    /// Opens the store file at `path`, or creates it, and reads every lease in it.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or created, is in use by another server, is damaged, has an unknown
    /// format, or is no store file. Then not one byte of it was changed.
    pub fn file(path: &Path, options: Options) -> Result<Self, Error> {
        Self::load(FileJournal::open(path, options.accept_older_state)?.into(), options)
    }

    /// Opens the store file on `backend`, or creates it there. Tests use this for a disk that fails or
    /// stalls.
    ///
    /// # Errors
    ///
    /// As [`Recovered::file`].
    pub fn on_backend(backend: impl redb::StorageBackend, options: Options) -> Result<Self, Error> {
        let path = Path::new("(custom backend)");
        Self::load(
            FileJournal::on(Backend::new(backend), path, options.accept_older_state)?.into(),
            options,
        )
    }

    fn load(mut opened: Opened, options: Options) -> Result<Self, Error> {
        let mut restored = options.nothing_restored(true)?;
        let stamp = opened.journal.load(&mut restored)?;
        Ok(Self { restored, journal: Some(opened), stamp, clock: options.clock })
    }

    /// How many leases were read.
    pub fn leases(&self) -> usize {
        self.restored.ledger.len()
    }

    /// Starts the store: every lease has its full TTL from now, a lingering lease the time that was
    /// left.
    ///
    /// Store time continues from the last stamp in the journal.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when a thread cannot be started.
    pub fn resume(self) -> Result<Store, Error> {
        let Self { restored, journal, stamp, clock } = self;
        let Restored { mut ledger, records } = restored;
        ledger.resume(stamp.time, stamp.next_serial, stamp.time);
        let shared = Shared::new(ledger, records, journal.is_some(), stamp, clock);
        let path = journal.as_ref().map(|opened| opened.path.clone()).unwrap_or_default();
        let store = Store::new(shared, path);
        store.spawn("store-clock", |shared| shared.run_clock())?;
        let Some(Opened { journal, path, watch }) = journal else { return Ok(store) };
        if let Some(watch) = watch {
            store.spawn("store-watch", move |shared| shared.watch_journal(&*watch, &path))?;
        }
        store.spawn("store-journal", |shared| shared.run_journal(journal))?;
        Ok(store)
    }
}

fn random_seed() -> Result<[u8; 32], Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| Error::System {
        action: "get random bytes from the operating system",
        source: std::io::Error::other(error),
    })?;
    Ok(seed)
}
