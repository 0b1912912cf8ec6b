//! Opening a store: its journal is read before it runs.
//!
//! This module knows which journal belongs to which URL. Another engine is added here and in `url.rs`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::Error;
use crate::fleet::{Config, FleetSecret, MemberId};
use crate::journal::engine::Elections;
use crate::journal::etcd::EtcdElections;
use crate::journal::file::{Backend, FileJournal};
use crate::journal::postgres::PostgresElections;
use crate::journal::{Opened, Restored, Stamp};
use crate::leading::Leading;
use crate::options::{Options, random_bytes};
use crate::shared::Shared;
use crate::store::Store;
use crate::url::{DatabaseUrl, StoreUrl};

/// How long the database of a fleet may take to answer when a server starts.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

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
    /// The part of this server in a fleet, if the store is one of a fleet.
    leading: Option<Leading>,
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
            StoreUrl::Postgres(url) => Self::postgres(url, options),
            StoreUrl::Etcd(url) => Self::etcd(url, options),
        }
    }

    /// Returns an empty store without a journal: its leases end with the process.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the operating system has no random bytes.
    pub fn memory(options: Options) -> Result<Self, Error> {
        let (restored, stamp) = (options.nothing_restored(false)?, Stamp::default());
        Ok(Self { restored, journal: None, stamp, clock: options.clock, leading: None })
    }

    /// Connects to the database of a fleet, and creates its tables if there are none. The store leads
    /// or stands by when it runs.
    fn postgres(url: &DatabaseUrl, options: Options) -> Result<Self, Error> {
        let elections = PostgresElections::open(
            url.postgres()?,
            options.leader_ttl,
            FleetSecret(random_bytes()?),
            OPEN_WITHIN,
        )?;
        Self::of_fleet(Box::new(elections), options)
    }

    /// Connects to the etcd of a fleet, as [`Recovered::postgres`] does to its database.
    fn etcd(url: &DatabaseUrl, options: Options) -> Result<Self, Error> {
        let secret = FleetSecret(random_bytes()?);
        let elections = EtcdElections::open(url.etcd()?, options.leader_ttl, secret, OPEN_WITHIN)?;
        Self::of_fleet(Box::new(elections), options)
    }

    /// The part of a server in the fleet of a database.
    fn of_fleet(elections: Box<dyn Elections>, options: Options) -> Result<Self, Error> {
        let (restored, stamp) = (options.nothing_restored(true)?, Stamp::default());
        let config = Config {
            leader_ttl: options.leader_ttl,
            address: options.advertised.clone(),
            member: MemberId(u128::from_le_bytes(random_bytes()?)),
            seed: random_bytes()?,
        };
        let clock = options.clock.clone();
        let leading = Some(Leading { elections, options, config });
        Ok(Self { restored, journal: None, stamp, clock, leading })
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
        Ok(Self { restored, journal: Some(opened), stamp, clock: options.clock, leading: None })
    }

    /// How many leases were read.
    pub fn leases(&self) -> usize {
        self.restored.ledger.len()
    }

    /// Sets where the other servers of a fleet reach this one. It is known when the port is open.
    pub fn advertise(&mut self, address: &str) {
        if let Some(leading) = &mut self.leading {
            leading.config.address = address.into();
        }
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
        let Self { restored, journal, stamp, clock, leading } = self;
        let Restored { mut ledger, records } = restored;
        ledger.resume(stamp.time, stamp.next_serial, stamp.time);
        let is_journaled = journal.is_some() || leading.is_some();
        let shared = Shared::new(ledger, records, is_journaled, stamp, clock);
        if let Some(leading) = &leading {
            shared.join_fleet(leading.elections.secret());
            shared.desk.set_policy_hash(&leading.options.policy_hash);
            // A store joins one fleet, once.
            let _ = shared.desk.own.set(leading.config.member);
        }
        let path = journal.as_ref().map(|opened| opened.path.clone()).unwrap_or_default();
        let store = Store::new(shared, path);
        store.spawn("store-clock", |shared| shared.run_clock())?;
        if let Some(leading) = leading {
            store.spawn("store-leadership", move |shared| leading.run(shared))?;
        }
        let Some(Opened { journal, path, watch }) = journal else { return Ok(store) };
        if let Some(watch) = watch {
            store.spawn("store-watch", move |shared| shared.watch_journal(&*watch, &path))?;
        }
        store.spawn("store-journal", |shared| shared.run_journal(journal, 0))?;
        Ok(store)
    }
}
