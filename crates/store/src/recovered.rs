//! A store on its way up: opened and read, not yet running.

use std::path::Path;
use std::sync::Arc;

use lease::{Change, Config, Invalid, Ledger};

use crate::clock::{Clock, SystemClock};
use crate::error::Error;
use crate::journal::file::FileJournal;
use crate::journal::{Opened, Operated, Restore, Stamp};
use crate::records::Kept;
use crate::shared::Shared;
use crate::store::Store;
use crate::url::StoreUrl;

/// What a store within the process is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The most leases it holds at once, whatever the policy allows.
    pub max_leases: u64,
    /// The most bytes that the ids of all leases take up at once.
    pub max_id_bytes: u64,
    /// Where it reads the time.
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
    /// An empty ledger.
    fn ledger(&self, journal: bool) -> Result<Ledger, Error> {
        let Self { max_leases, max_id_bytes, .. } = *self;
        let seed = random_seed()?;
        let config = Config { max_leases, max_id_bytes, seed, journal, ..Config::default() };
        Ok(Ledger::new(config))
    }
}

/// A store that has read what it kept and waits for the port to open.
///
/// [`Recovered::resume`] starts it: from that moment every lease has its full TTL.
#[derive(Debug)]
pub struct Recovered {
    ledger: Ledger,
    kept: Kept,
    /// `None` for a store that forgets everything with the process.
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

    /// A store that forgets everything with the process.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the operating system has no random bytes.
    pub fn memory(options: Options) -> Result<Self, Error> {
        let (ledger, kept, stamp) = (options.ledger(false)?, Kept::default(), Stamp::default());
        Ok(Self { ledger, kept, journal: None, stamp, clock: options.clock })
    }

    /// Opens the store file at `path`, or makes it, and reads every lease in it.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or made, is in use by another server, is damaged, has an unknown
    /// format, or is no store file. It is left as it is then, to the byte.
    pub fn file(path: &Path, options: Options) -> Result<Self, Error> {
        Self::load(FileJournal::open(path, options.accept_older_state)?.into(), options)
    }

    /// Opens the store kept on `backend`, or starts one there. This is how tests give a store a
    /// disk that fails or stalls.
    ///
    /// # Errors
    ///
    /// As [`Recovered::file`].
    pub fn on_backend(backend: impl redb::StorageBackend, options: Options) -> Result<Self, Error> {
        let path = Path::new("(custom backend)");
        Self::load(FileJournal::on(backend, path, options.accept_older_state)?.into(), options)
    }

    fn load(mut opened: Opened, options: Options) -> Result<Self, Error> {
        let mut read = Read { ledger: options.ledger(true)?, kept: Kept::default() };
        let stamp = opened.journal.load(&mut read)?;
        let (Read { ledger, kept }, clock) = (read, options.clock);
        Ok(Self { ledger, kept, journal: Some(opened), stamp, clock })
    }

    /// How many leases were read.
    pub fn leases(&self) -> usize {
        self.ledger.len()
    }

    /// Starts the store: every lease has its full TTL from now, a lingering one what was left.
    ///
    /// Store time goes on where it stood when the store was written to last.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when a thread cannot be started.
    pub fn resume(self) -> Result<Store, Error> {
        let Self { mut ledger, kept, journal, stamp, clock } = self;
        ledger.resume(stamp.time, stamp.next_serial, stamp.time);
        let shared = Shared::new(ledger, kept, journal.is_some(), stamp, clock);
        let path = journal.as_ref().map(|opened| opened.path.clone()).unwrap_or_default();
        let store = Store::new(shared, path);
        store.spawn("store-clock", |shared| shared.keep_time())?;
        let Some(Opened { journal, path, watch }) = journal else { return Ok(store) };
        if let Some(watch) = watch {
            store.spawn("store-watch", move |shared| shared.watch_journal(&*watch, &path))?;
        }
        store.spawn("store-journal", |shared| shared.keep_journal(journal))?;
        Ok(store)
    }
}

/// What a journal gave back.
struct Read {
    ledger: Ledger,
    kept: Kept,
}

impl Restore for Read {
    fn change(&mut self, change: Change) -> Result<(), Invalid> {
        self.ledger.restore(change)
    }

    fn operated(&mut self, operated: Operated) {
        self.kept.apply(operated);
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
