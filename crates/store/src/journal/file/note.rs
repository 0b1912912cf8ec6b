//! The note of the last acknowledged batch, kept in the file outside of redb's own pages.
//!
//! redb keeps two commits and starts from the older one when the newer one is not whole. After a
//! loss of power in the middle of a commit that is right: nobody was told of the newer one. When a
//! page of a commit is damaged that was acknowledged, it is not, and redb cannot know. So every batch
//! carries a number, and once it is flushed, and before anybody hears of it, its number is noted
//! here. A file whose newest readable batch is older than the note lost what was acknowledged.
//!
//! The note is written after the flush, so it is never ahead of what is on the disk, whenever the
//! power goes. It is flushed with the next batch: that costs no flush of its own. Until then, for a
//! second at most while there are leases, a loss of power takes the note with it.
//!
//! It stands in the first page of the file, of which redb uses the first 320 bytes and leaves the
//! rest alone. Two places take turns, so that a note that is torn leaves the one before.

use std::io;
use std::time::Duration;

use lease::Timestamp;
use redb::StorageBackend;
use sha2::{Digest as _, Sha256};

/// The places of the note: in sectors of their own, behind what redb uses of the first page.
const PLACES: [u64; 2] = [1_024, 2_048];

const MAGIC: [u8; 8] = *b"tgm-note";

/// The magic, three numbers and the start of their digest.
const BYTES: usize = 48;

/// What is noted of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// The number of the batch.
    pub(crate) batch: u64,
    /// Store time, as in its stamp.
    pub(crate) time: Timestamp,
    /// The serial number of the next grant, as in its stamp.
    pub(crate) next_serial: u64,
}

impl Note {
    /// The note in the file; batch 0 when there is none, as in files of earlier versions.
    pub(crate) fn read(backend: &impl StorageBackend) -> io::Result<Self> {
        let mut latest = Self::default();
        for place in PLACES {
            if backend.len()? < place + BYTES as u64 {
                break;
            }
            let mut bytes = [0; BYTES];
            backend.read(place, &mut bytes)?;
            match Self::from_bytes(&bytes) {
                Some(note) if note.batch > latest.batch => latest = note,
                _ => {}
            }
        }
        Ok(latest)
    }

    /// Writes the note, without a flush.
    pub(crate) fn write(&self, backend: &impl StorageBackend) -> io::Result<()> {
        backend.write(PLACES[(self.batch % 2) as usize], &self.to_bytes())
    }

    /// How much store time passed from `earlier` until this batch.
    pub(crate) fn since(&self, earlier: Timestamp) -> Duration {
        self.time.since(earlier)
    }

    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.batch.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.time.as_nanos().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.next_serial.to_le_bytes());
        let digest = Sha256::digest(&bytes[..32]);
        bytes[32..].copy_from_slice(&digest[..16]);
        bytes
    }

    /// `None` for what was never written, is torn, or is damaged.
    fn from_bytes(bytes: &[u8; BYTES]) -> Option<Self> {
        let number = |at: usize| bytes[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let note = Self {
            batch: number(8)?,
            time: Timestamp::from_nanos(number(16)?),
            next_serial: number(24)?,
        };
        (note.to_bytes() == *bytes).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;

    use super::*;

    fn note(batch: u64) -> Note {
        Note { batch, time: Timestamp::from_nanos(batch * 7), next_serial: batch * 3 }
    }

    #[test]
    fn the_latest_note_is_read_and_one_that_is_torn_leaves_the_one_before() {
        let backend = InMemoryBackend::new();
        assert_eq!(Note::read(&backend).unwrap(), Note::default());
        backend.set_len(4_096).unwrap();
        assert_eq!(Note::read(&backend).unwrap(), Note::default());
        for batch in 1..=5 {
            note(batch).write(&backend).unwrap();
            assert_eq!(Note::read(&backend).unwrap(), note(batch));
        }
        for place in 0..BYTES as u64 {
            let mut byte = [0];
            backend.read(PLACES[1] + place, &mut byte).unwrap();
            backend.write(PLACES[1] + place, &[byte[0] ^ 1]).unwrap();
            assert_eq!(Note::read(&backend).unwrap(), note(4), "byte {place}");
            backend.write(PLACES[1] + place, &byte).unwrap();
        }
        assert_eq!(Note::read(&backend).unwrap(), note(5));
    }
}
