//! The keys of a fleet that are read or written as a whole, while no server uses them.

use std::time::{Duration, Instant};

use super::client::Client;
use super::elections::{VERSION, look, meet, no_keys, write_all};
use super::load;
use super::settings::Settings;
use crate::contents::{Inspected, RecordCounts};
use crate::error::Error;
use crate::fleet::{FleetSecret, JournalRow, Rows as Seen, Sightings};
use crate::journal::engine::Unanswered;
use crate::journal::watching::{in_use, watch_leadership};
use crate::journal::{Restored, Snapshot, Stamp};

/// How long one call may take.
const WITHIN: Duration = Duration::from_secs(30);

/// How long the members of a fleet are watched: each writes its row once a second.
const WATCHED: Duration = Duration::from_millis(1_500);

/// The keys of a fleet that no server leads.
#[derive(Debug)]
pub(crate) struct Unused {
    client: Client,
    /// Both rows; `None` while there are no keys.
    seen: Option<Seen>,
}

impl Unused {
    /// Looks at the keys. If a server may lead the fleet, its row is watched first; `watch` is told for how
    /// long.
    pub(crate) fn open(settings: Settings, watch: &mut dyn FnMut(Duration)) -> Result<Self, Error> {
        let (url, mut client) = (settings.shown.clone(), Client::new(settings)?);
        let mut look = || look(&mut client, WITHIN).map_err(|error| client.error(error));
        let seen = watch_leadership(&url, &mut look, watch)?;
        Ok(Self { client, seen })
    }

    /// Restores all rows, and returns the stamp of the last batch.
    pub(crate) fn read(&mut self, restored: &mut Restored) -> Result<Stamp, Error> {
        if self.seen.is_none() {
            return Err(self.client.error(no_keys()));
        }
        let read = load(&mut self.client, restored, WITHIN);
        read.map_err(|error| self.client.error(error))
    }

    /// Whether there are keys of a fleet.
    pub(crate) fn exists(&self) -> bool {
        self.seen.is_some()
    }

    /// Checks that no server has begun to lead.
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        let now = look(&mut self.client, WITHIN).map_err(|error| self.client.error(error))?;
        if now == self.seen { Ok(()) } else { Err(in_use(&self.client.settings().shown)) }
    }

    /// Writes everything as one change, if no server has begun to lead. The secret and the leader TTL are
    /// those of a new fleet.
    pub(crate) fn write(
        &mut self,
        secret: [u8; 32],
        leader_ttl: Duration,
        content: Snapshot,
    ) -> Result<(), Error> {
        let before = self.seen.clone().unwrap_or_else(|| Seen::new(leader_ttl));
        let journal = JournalRow { sequence: before.journal.sequence + 1, ..before.journal };
        let new = Seen { journal, ..before.clone() };
        let (client, seen) = (&mut self.client, self.seen.as_ref());
        let secret = seen.is_none().then_some(FleetSecret(secret));
        let written = write_all(client, seen, &new, secret, content, WITHIN);
        if !written.map_err(|error| client.error(error))? {
            return Err(in_use(&client.settings().shown));
        }
        self.seen = Some(new);
        Ok(())
    }
}

/// Looks into the keys, which may be in use; `restored` is empty, and is used to count them.
pub(crate) fn inspect(settings: Settings, mut restored: Restored) -> Result<Inspected, Error> {
    let mut client = Client::new(settings)?;
    let mut read = || {
        let fleet = look(&mut client, WITHIN)?.ok_or_else(no_keys)?;
        let Stamp { next_serial, .. } = load(&mut client, &mut restored, WITHIN)?;
        let (mut sightings, began) = (Sightings::new(Duration::ZERO), Instant::now());
        let mut members = meet(&mut client, None, &mut sightings, began, WITHIN)?;
        if !members.is_empty() {
            // Who has not written its row meanwhile was seen that long ago at least.
            std::thread::sleep(WATCHED);
            members = meet(&mut client, None, &mut sightings, began, WITHIN)?;
        }
        Ok(Inspected {
            version: VERSION.unsigned_abs().into(),
            records: RecordCounts::of(&restored),
            sequence: fleet.journal.sequence,
            next_serial,
            fleet: Some(fleet),
            members,
        })
    };
    read().map_err(|error: Unanswered| client.error(error))
}
